"""Adapters of peft as w = d + U theta and back, for the tuners that are that: `read` and `write` a folder of peft's.

A tuner is a file of one class, and a line in `TUNERS`. peft itself is not needed.
"""

from subspace.integrations.peft.folders import read, write

__all__ = ["read", "write"]
