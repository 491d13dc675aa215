"""Flat places in a weight, as an int64 index of distinct places in any order, and what is wrong with one that is not.

theta[j] is the entry at place index[j]: j is its slot, for as long as it lives.
"""

from __future__ import annotations

import torch
from torch import Tensor


def check(index: Tensor, size: int) -> None:
    """Raise ValueError unless the index holds distinct places in range(size), 1-d int64; takes O(k) if it is sorted."""
    if why := fault(index, size):
        raise ValueError(f"index must be 1-d int64, distinct and in [0, {size}), got {why}")


def fault(index: Tensor, size: int) -> str | None:
    """What an index has that `check` refuses, in a few words; None if nothing."""
    if index.ndim != 1 or index.dtype != torch.int64:
        return f"{index.ndim}-d {index.dtype}"
    if not len(index):
        return None
    first, last = (int(bound) for bound in index.aminmax())
    if first < 0 or last >= size:
        return f"{first} ... {last}"
    if is_sorted(index):
        return None
    repeated = int((index.sort().values.diff() == 0).sum())
    return f"{repeated} repeated" if repeated else None


def is_sorted(index: Tensor) -> bool:
    """Whether every place is larger than the one before."""
    return bool((index.diff() > 0).all())
