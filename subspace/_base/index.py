"""Flat places in a weight, as a sorted, distinct int64 index, and what is wrong with one that is not that."""

from __future__ import annotations

import torch
from torch import Tensor


def check(index: Tensor, size: int) -> None:
    """Raise ValueError unless the index holds sorted, distinct places in range(size), 1-d int64; takes O(k)."""
    if why := fault(index, size):
        raise ValueError(f"index must be 1-d int64, sorted, distinct and in [0, {size}), got {why}")


def fault(index: Tensor, size: int) -> str | None:
    """What an index has that `check` refuses, in a few words; None if nothing."""
    if index.ndim != 1 or index.dtype != torch.int64:
        return f"{index.ndim}-d {index.dtype}"
    if not len(index):
        return None
    first, last = (int(bound) for bound in index.aminmax())
    if first < 0 or last >= size:
        return f"{first} ... {last}"
    steps = index.diff()
    if backwards := int((steps < 0).sum()):
        return f"{backwards} smaller than the one before"
    repeated = int((steps == 0).sum())
    return f"{repeated} repeated" if repeated else None
