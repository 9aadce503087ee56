"""One file per published detector."""
