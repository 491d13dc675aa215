"""One training run, from a configuration to its metrics."""
