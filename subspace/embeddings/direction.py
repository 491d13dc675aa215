"""The line along a fixed tensor: with `DirectSum`, the trainable alpha of DCTpS.

alpha is a number of theta, and so shares its parameter group; its own rate is the length of its column. An optimizer
that normalises gradients (Adam and its kind) moves scale theta by `scale` times as much as with a scale of 1, and one
that does not (SGD) by scale^2 times. `subspace.add_alpha_group` gives it a group of its own.
"""

from __future__ import annotations

import math

from torch import Tensor

from subspace.embeddings.base import Embedding, Line
from subspace.offsets import Offset
from subspace.products.flops import Flops


class Direction(Embedding):
    """U theta = theta scale d; dim = 1. The column is scale d itself, not normalised.

    Args:
        offset: d, which must not be zero.
        scale: What one number of theta moves alpha by.

    Raises:
        ValueError: If d is zero, or scale zero or not finite.

    >>> import torch
    >>> from subspace.offsets import DCT
    >>> Direction(DCT(torch.empty(1, 4)))(torch.tensor([3.0]))
    tensor([[1.5000, 1.5000, 1.5000, 1.5000]])
    """

    def __init__(self, offset: Offset, scale: float = 1.0) -> None:
        structure = offset.structure()
        if structure is not None and structure.is_zero:
            raise ValueError("offset must not be zero, got Zero")
        if scale == 0 or not math.isfinite(scale):
            raise ValueError(f"scale must be finite and not zero, got {scale}")
        super().__init__(offset.like.new_empty(()).expand(offset.shape), 1)
        self.offset, self.scale = offset, float(scale)

    def forward(self, theta: Tensor) -> Tensor:
        return (self.scale * theta).reshape(()) * self._d()

    def adjoint(self, weight: Tensor) -> Tensor:
        return (self.scale * (self._d() * weight).sum()).reshape(1)

    def coordinates(self, weight: Tensor) -> Tensor:
        d = self._d()
        return ((d * weight).sum() / (self.scale * (d * d).sum())).reshape(1)

    def linear(self, theta: Tensor, x: Tensor) -> Tensor:
        return (self.scale * theta).reshape(()) * self.offset.linear(x)

    def _d(self) -> Tensor:
        return self.offset().to(self.like.dtype)

    def has_fast_linear(self) -> bool:
        return self.offset.has_fast_linear()

    def direction(self) -> Line:
        return Line(self.offset, self.scale)

    def flops(self, groups: int = 1) -> Flops | None:
        return self.offset.flops(groups, alpha=True)
