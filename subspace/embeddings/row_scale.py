"""One number for every output of a fixed tensor: IA3 (Liu et al., NeurIPS 2022), and tuning of gains alone.

`Direction` with a number for each row. A product costs that with d and one multiplication for each output. Held are the
lengths of d's rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from subspace._base.layout import STANDARD, Layout
from subspace.embeddings.base import Embedding
from subspace.offsets import Offset, Pretrained
from subspace.products.flops import Flops


class RowScale(Embedding):
    """U theta = diag(theta) diag(c) d: theta_j scales output j, dim is the number of outputs, columns are orthogonal.

    Args:
        offset: d, no row of which must be zero; which rows are outputs, its layout says.
        scale: By default c gives every column length 1, so that U^T U = I; a number is c itself: with 1, IA3's, theta
            of ones is d.
        layout: Which rows are outputs, where d does not say it.
        of: The entries of several tensors that share theta, as a layer's weight and its bias; by default those of d.

    Raises:
        ValueError: If scale is not positive and finite, or if a row of d is zero where no other tensor shares theta.

    >>> import torch
    >>> from subspace.offsets import DCT
    >>> RowScale(DCT(torch.empty(2, 4)), scale=1.0)(torch.tensor([3.0, 0.0]))
    tensor([[1.5000, 1.5000, 1.5000, 1.5000],
            [0.0000, 0.0000, -0.0000, -0.0000]])
    """

    def __init__(
        self, offset: Offset, *, scale: float | None = None, layout: Layout | None = None, of: int | None = None
    ) -> None:
        if scale is not None and not 0 < scale < math.inf:
            raise ValueError(f"scale must be positive and finite, got {scale}")
        layout = offset.layout if layout is None else Layout(*layout)
        outputs = layout.matrices(offset.shape) * layout.fans(offset.shape)[0]
        super().__init__(offset.like.new_empty(()).expand(offset.shape), outputs, of=of, layout=layout)
        if scale is None and self.of != self.shape.numel():
            raise ValueError("scale must be a number where several tensors share theta, got None")
        self.offset, self.scale = offset, scale
        self.rebuild()

    def rebuild(self) -> None:
        d = self._matrix(self.offset())
        rows = d.square().sum(1)
        shared = self.of != self.shape.numel()
        if not (d.is_meta or shared) and (zero := int((rows == 0).sum())):
            raise ValueError(f"every row of offset must have an entry other than 0, got {zero} of {len(rows)} without")
        self.lengths = rows.sqrt()

    def _matrix(self, weight: Tensor) -> Tensor:
        return self.layout.to_rows(weight)

    def factors(self, theta: Tensor) -> Tensor:
        """What each row of d is multiplied by: (dim,) -> (dim,)."""
        wide = theta.to(self.lengths.dtype)
        return wide / self.lengths if self.scale is None else wide * self.scale

    def forward(self, theta: Tensor) -> Tensor:
        d = self._matrix(self.offset())
        rows = self.factors(theta).unsqueeze(-1) * d
        matrices = rows.reshape(-1, *self.fans)
        return self.layout.from_matrix(matrices, self.shape).to(theta.dtype)

    def adjoint(self, weight: Tensor) -> Tensor:
        products = self._matrix(self.offset() * weight.to(self.lengths.dtype))
        return self.factors(products.sum(1)).to(weight.dtype)

    def coordinates(self, weight: Tensor) -> Tensor:
        if self.scale is None:
            return self.adjoint(weight)
        if self.of != self.shape.numel():
            return super().coordinates(weight)  # of rows that may be zero
        wide = weight.to(self.lengths.dtype)
        return (self.adjoint(wide) / (self.lengths * self.scale).square()).to(weight.dtype)

    def linear(self, theta: Tensor, x: Tensor) -> Tensor:
        if self.layout != self.offset.layout:
            return super().linear(theta, x)
        return (self.offset.linear(x) * self.factors(theta)).to(x.dtype)

    def linear_beside(self, offset: Offset, theta: Tensor, x: Tensor) -> Tensor:
        if not offset.is_same(self.offset) or not self.has_fast_linear():
            return super().linear_beside(offset, theta, x)
        return (offset.linear(x) * (1 + self.factors(theta))).to(x.dtype)

    def has_fast_linear(self) -> bool:
        return self.layout == self.offset.layout and self.offset.has_fast_linear()

    def flops(self, groups: int = 1) -> Flops | None:
        return self.offset.flops(groups, alpha=True) if self.layout == self.offset.layout else None

    def flops_beside(self, offset: Offset) -> Flops | None:
        n = float(self.fans[0])
        return Flops(n, n, 2 * n) if offset.is_same(self.offset) else super().flops_beside(offset)

    def build_flops(self) -> float:
        return 2.0 * self.shape.numel()


def of_outputs(tensors: Mapping[str, Tensor], layout: Layout) -> dict[str, tuple[Offset, RowScale]]:
    """d, the tensors as they are, and IA3's U of a layer's weight, the first, and its bias, which share theta.

    layout: of the weight. Raises ValueError for an output without any entry other than 0.
    """
    of = sum(tensor.numel() for tensor in tensors.values())
    found: dict[str, tuple[Offset, RowScale]] = {}
    for name, tensor in tensors.items():
        d = Pretrained(tensor)
        found[name] = d, RowScale(d, scale=1.0, layout=STANDARD if found else layout, of=of)
    if len(counts := {len(U.lengths) for _, U in found.values()}) > 1:  # of transposed convolutions in groups
        raise ValueError(f"weight and bias must have as many outputs, got {' and '.join(map(str, sorted(counts)))}")
    if zero := int((torch.stack([U.lengths for _, U in found.values()]).sum(0) == 0).sum()):
        raise ValueError(f"every output must have an entry other than 0, got {zero} without")
    return found
