"""d = 0: pruned and ordinary networks."""

from __future__ import annotations

from torch import Tensor

from subspace.offsets.base import Offset
from subspace.products.flops import Flops
from subspace.products.weight import Structure


class Zero(Offset):
    """d = 0, as a view of one number.

    Args:
        like: The weight, or any floating-point tensor of its shape, dtype and device; its values are not kept.
        key: Not used.

    >>> import torch
    >>> int(Zero(torch.empty(2, 3))().count_nonzero())
    0
    """

    def forward(self) -> Tensor:
        return self.like.new_zeros(()).expand(self.shape)

    def linear(self, x: Tensor) -> Tensor:
        return x.new_zeros(()).expand(*x.shape[:-1], self.shape[0])

    def structure(self) -> Structure:
        return Structure("zero", 0.0)

    def flops(self, groups: int = 1, *, alpha: bool = False) -> Flops:
        return Flops()
