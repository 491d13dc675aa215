"""Checkpoints of what was trained: one file, of theta and of how to build d and U again."""

from subspace.checkpoint.format import load, save

__all__ = ["load", "save"]
