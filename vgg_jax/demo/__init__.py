"""What makes the toolkit work on a fresh machine: drawn pictures and a small backbone."""
