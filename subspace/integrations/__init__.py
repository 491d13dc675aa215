"""Thin shells over the package's own hooks, for those who train with other libraries; not imported with `subspace`."""
