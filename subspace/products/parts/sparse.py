"""The sparse part S of any product, forward and both gradients: on GPUs by Triton where its kernels can take it."""

from __future__ import annotations

import torch
from torch import Tensor

from subspace._base.dtypes import at_least_float32
from subspace.products.geometry import Geometry
from subspace.products.parts import sparse_conv, sparse_matrix
from subspace.products.triton import can_take, kernels
from subspace.products.weight import Weight


def forward(x: Tensor, w: Weight, geometry: Geometry, y: Tensor) -> None:
    """y += S x in place: of (rows, n_in), or (N, C, *spatial)."""
    if w.values.shape[0] == 0:
        return
    match bool(geometry.kernel), _has_kernels(geometry, x, y):
        case True, True:
            kernels("sparse_conv").forward(x, w, geometry, y)
        case True, False:
            sparse_conv.forward(x, w, geometry, y)
        case False, True:
            kernels("sparse").forward(x, w, y, add=True)
        case False, False:
            sparse_matrix.forward(x, w, y)


def backward(
    gy: Tensor, x: Tensor, w: Weight, geometry: Geometry, gx: Tensor | None, needs_values: bool
) -> Tensor | None:
    """gx += S^T gy in place where given; returns gvalues, or None if not needed."""
    gvalues = w.values.new_zeros(len(w.values), dtype=at_least_float32(x.dtype)) if needs_values else None
    if w.values.shape[0] == 0:
        return gvalues
    match bool(geometry.kernel), _has_kernels(geometry, gy, x, x if gx is None else gx):
        case True, True:
            gvalues = kernels("sparse_conv").backward(gy, x, w, geometry, gx, needs_values)
        case True, False:
            sparse_conv.backward(gy, x, w, geometry, gx, gvalues)
        case False, True:
            gvalues = kernels("sparse").backward(gy, x, w, gx, True, needs_values)
        case False, False:
            sparse_matrix.backward(gy, x, w, gx, gvalues)
    return gvalues


def _has_kernels(geometry: Geometry, *tensors: Tensor) -> bool:
    """Whether Triton's kernels can take these: rows, or images in channels_last."""
    if len(geometry.kernel) not in (0, 2):
        return False
    layout = torch.channels_last if geometry.kernel else torch.contiguous_format
    return all(can_take(t.device.type, t.dtype) and t.is_contiguous(memory_format=layout) for t in tensors)
