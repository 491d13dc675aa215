"""Checkpoints of what was trained: one file, of theta and of how to build d and U again."""

from subspace.checkpoint.format import load, save
from subspace.checkpoint.packing import Packed, pack, rounded

__all__ = ["Packed", "load", "pack", "rounded", "save"]
