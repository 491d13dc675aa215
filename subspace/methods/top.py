"""The k largest of many numbers, the same ones on every machine: among equals, the first."""

from __future__ import annotations

import torch
from torch import Tensor


def top(values: Tensor, k: int) -> Tensor:
    """The places of the k largest values, equal ones taken in order: (n,) -> sorted (k,) int64.

    `torch.topk` leaves open which of several equal values it returns, so that it gives only the threshold here.

    >>> top(torch.tensor([1.0, 3.0, 2.0, 2.0, 2.0]), 3)
    tensor([1, 2, 3])
    """
    if k == 0:
        return torch.empty(0, dtype=torch.int64, device=values.device)
    threshold = values.topk(k, sorted=False).values.min()
    above = (values > threshold).nonzero().squeeze(1)
    equal = (values == threshold).nonzero().squeeze(1)[: k - len(above)]
    return torch.cat([above, equal]).sort().values
