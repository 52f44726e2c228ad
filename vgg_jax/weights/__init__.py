"""Reading and storing weights."""
