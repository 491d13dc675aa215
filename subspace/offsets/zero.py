"""d = 0: pruned and ordinary networks."""

from __future__ import annotations

from torch import Tensor

from subspace.offsets.base import Offset


class Zero(Offset):
    """d = 0, as a view of one number.

    >>> import torch
    >>> int(Zero(torch.empty(2, 3))().count_nonzero())
    0
    """

    def forward(self) -> Tensor:
        return self.like.new_zeros(()).expand(self.shape)

    def linear(self, x: Tensor) -> Tensor:
        return x.new_zeros(()).expand(*x.shape[:-1], self.shape[0])
