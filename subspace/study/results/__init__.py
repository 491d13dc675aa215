"""What is kept of runs on disk, and tables of it."""
