"""The sparse part S of any product, forward and both gradients."""

from __future__ import annotations

from torch import Tensor

from subspace._base.dtypes import at_least_float32
from subspace.products.geometry import Geometry
from subspace.products.parts import sparse_conv, sparse_matrix
from subspace.products.weight import Weight


def forward(x: Tensor, w: Weight, geometry: Geometry, y: Tensor) -> None:
    """y += S x in place: of (rows, n_in), or (N, C, *spatial)."""
    if len(w.values) == 0:
        return
    if geometry.kernel:
        sparse_conv.forward(x, w, geometry, y)
    else:
        sparse_matrix.forward(x, w, y)


def backward(
    gy: Tensor, x: Tensor, w: Weight, geometry: Geometry, gx: Tensor | None, needs_values: bool
) -> Tensor | None:
    """gx += S^T gy in place where given; returns gvalues, or None if not needed."""
    gvalues = w.values.new_zeros(len(w.values), dtype=at_least_float32(x.dtype)) if needs_values else None
    if len(w.values) == 0:
        return gvalues
    if geometry.kernel:
        sparse_conv.backward(gy, x, w, geometry, gx, gvalues)
    else:
        sparse_matrix.backward(gy, x, w, gx, gvalues)
    return gvalues
