"""The k largest of many numbers, the same ones on every machine: among equals, the first."""

from __future__ import annotations

import torch
from torch import Tensor


def top(values: Tensor, k: int) -> Tensor:
    """The places of the k largest values, equal ones taken in order: (n,) -> sorted (k,) int64.

    O(n); `torch.topk` is slower for a large k, and leaves open which of several equal values it returns.

    >>> top(torch.tensor([1.0, 3.0, 2.0, 2.0, 2.0]), 3)
    tensor([1, 2, 3])
    """
    if k == 0:
        return torch.empty(0, dtype=torch.int64, device=values.device)
    threshold = values.kthvalue(len(values) - k + 1).values
    chosen = values > threshold
    chosen[(values == threshold).nonzero().squeeze(1)[: k - int(chosen.sum())]] = True
    return chosen.nonzero().squeeze(1)


def count_nonfinite(values: Tensor) -> int:
    """How many values are not finite; where none is, it costs one fast pass."""
    if values.numel() == 0 or all(bool(bound.isfinite()) for bound in values.aminmax()):
        return 0
    return int((~values.isfinite()).sum())
