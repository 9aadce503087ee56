"""What people look at: figures of single frames and the HTML report that compares runs."""
