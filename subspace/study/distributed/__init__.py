"""One run trained by several processes."""
