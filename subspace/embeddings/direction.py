"""The line along a fixed tensor: with `DirectSum`, the trainable alpha of DCTpS."""

from __future__ import annotations

from torch import Tensor

from subspace.embeddings.base import Embedding
from subspace.offsets import Offset
from subspace.products.flops import Flops


class Direction(Embedding):
    """U theta = theta d; dim = 1. The column is d itself, not normalised.

    Args:
        offset: d, which must not be zero.

    Raises:
        ValueError: If it is.

    >>> import torch
    >>> from subspace.offsets import DCT
    >>> Direction(DCT(torch.empty(1, 4)))(torch.tensor([3.0]))
    tensor([[1.5000, 1.5000, 1.5000, 1.5000]])
    """

    def __init__(self, offset: Offset) -> None:
        structure = offset.structure()
        if structure is not None and structure.is_zero:
            raise ValueError("offset must not be zero, got Zero")
        super().__init__(offset.like.new_empty(()).expand(offset.shape), 1)
        self.offset = offset

    def forward(self, theta: Tensor) -> Tensor:
        return theta.reshape(()) * self.offset()

    def adjoint(self, weight: Tensor) -> Tensor:
        return (self.offset() * weight).sum().reshape(1)

    def coordinates(self, weight: Tensor) -> Tensor:
        d = self.offset()
        return ((d * weight).sum() / (d * d).sum()).reshape(1)

    def linear(self, theta: Tensor, x: Tensor) -> Tensor:
        return theta.reshape(()) * self.offset.linear(x)

    def has_fast_linear(self) -> bool:
        return self.offset.has_fast_linear()

    def direction(self) -> Offset:
        return self.offset

    def flops(self, groups: int = 1) -> Flops | None:
        return self.offset.flops(groups, alpha=True)
