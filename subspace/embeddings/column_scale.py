"""One number for every input of a fixed tensor: IA3 (Liu et al., NeurIPS 2022) where it scales what a layer is given.

A product costs that with d and one multiplication for each input. Held are the lengths of d's columns.
"""

from __future__ import annotations

import math

from torch import Tensor

from subspace._base.layout import Layout
from subspace.embeddings.base import Embedding
from subspace.offsets import Offset
from subspace.products.flops import Flops


class ColumnScale(Embedding):
    """U theta = d diag(c) diag(theta): theta_k scales input k, at every tap of a convolution; columns are orthogonal.

    Blocks along the outputs, as of queries, keys and values, share theta; each matrix of a batch has its own.

    Args:
        offset: d, no column of which must be zero; which axis counts inputs, its layout says.
        scale: By default c gives every column of U length 1, so that U^T U = I; a number is c itself: with 1, IA3's,
            theta of ones is d.
        layout: Which axis counts inputs, where d does not say it.

    Raises:
        ValueError: If an input is one of zeros alone, or scale not positive and finite.

    >>> import torch
    >>> from subspace.offsets import Pretrained
    >>> ColumnScale(Pretrained(torch.ones(2, 3)), scale=1.0)(torch.tensor([1.0, 2.0, 3.0]))
    tensor([[1., 2., 3.],
            [1., 2., 3.]])
    """

    def __init__(self, offset: Offset, *, scale: float | None = None, layout: Layout | None = None) -> None:
        if scale is not None and not 0 < scale < math.inf:
            raise ValueError(f"scale must be positive and finite, got {scale}")
        layout = offset.layout if layout is None else Layout(*layout)
        kept = {axis for axis in layout.batch + layout.inputs if axis < len(offset.shape)}
        self.sizes = [size if axis in kept else 1 for axis, size in enumerate(offset.shape)]
        others = [axis for axis in range(len(offset.shape)) if axis not in kept]
        super().__init__(offset.like.new_empty(()).expand(offset.shape), math.prod(self.sizes), layout=layout)
        self.offset, self.scale, self._others = offset, scale, others
        self.rebuild()

    def rebuild(self) -> None:
        squares = self._sum(self.offset().square())
        if not squares.is_meta and (zero := int((squares == 0).sum())):
            raise ValueError(f"every input of offset must have an entry other than 0, got {zero} of {self.dim} without")
        self.lengths = squares.sqrt()

    def _sum(self, weight: Tensor) -> Tensor:
        return (weight.sum(self._others) if self._others else weight).reshape(-1)

    def factors(self, theta: Tensor) -> Tensor:
        """What each column of d is multiplied by: (dim,) -> (dim,)."""
        wide = theta.to(self.lengths.dtype)
        return wide / self.lengths if self.scale is None else wide * self.scale

    def forward(self, theta: Tensor) -> Tensor:
        return (self.offset() * self.factors(theta).reshape(self.sizes)).to(theta.dtype)

    def adjoint(self, weight: Tensor) -> Tensor:
        products = self._sum(self.offset() * weight.to(self.lengths.dtype))
        return self.factors(products).to(weight.dtype)

    def coordinates(self, weight: Tensor) -> Tensor:
        wide = self.adjoint(weight.to(self.lengths.dtype))
        return (wide if self.scale is None else wide / (self.lengths * self.scale).square()).to(weight.dtype)

    def linear(self, theta: Tensor, x: Tensor) -> Tensor:
        if not self.has_fast_linear():
            return super().linear(theta, x)
        return self.offset.linear(x.to(self.lengths.dtype) * self.factors(theta)).to(x.dtype)

    def linear_beside(self, offset: Offset, theta: Tensor, x: Tensor) -> Tensor:
        if not offset.is_same(self.offset) or not self.has_fast_linear():
            return super().linear_beside(offset, theta, x)
        return offset.linear(x.to(self.lengths.dtype) * (1 + self.factors(theta))).to(x.dtype)

    def has_fast_linear(self) -> bool:
        return self.layout == self.offset.layout and len(self.shape) == 2 and self.offset.has_fast_linear()

    def flops(self, groups: int = 1) -> Flops | None:
        of_d = self.offset.flops(groups) if self.layout == self.offset.layout else None
        return None if of_d is None else of_d + Flops(float(self.dim), float(self.dim), 2.0 * self.dim)

    def flops_beside(self, offset: Offset) -> Flops | None:
        n = float(self.dim)
        return Flops(n, n, 2 * n) if offset.is_same(self.offset) else super().flops_beside(offset)

    def build_flops(self) -> float:
        return float(self.shape.numel())
