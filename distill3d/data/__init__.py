"""What data sets yield, and how samples become batches."""
