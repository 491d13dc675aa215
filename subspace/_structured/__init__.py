"""Models whose layers multiply by d and U themselves, and never build w."""
