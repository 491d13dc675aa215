"""The same products by a w that is built, in plain differentiable operations: what every other route must equal."""

from __future__ import annotations

import torch
from torch import Tensor

from subspace._base.dtypes import at_least_float32
from subspace.products.geometry import Geometry
from subspace.products.parts import matrix
from subspace.products.weight import Weight


def build(w: Weight, like: Tensor) -> Tensor:
    """w with the dtype and device of `like`; differentiable in scale and values, to any order."""
    dtype = at_least_float32(like.dtype)
    if w.scale is None:
        dense = torch.zeros(w.shape, dtype=dtype, device=like.device)
    else:
        # Nothing kept: tensors born inside a torch.func transform belong to it.
        t = w.matrix
        if t is None:
            t = matrix.outer(*matrix.split(w.shape, w.transform, dtype, like.device), w.shape, w.transform)
        dense = w.scale.to(dtype) * (t if w.signs is None else w.turn_input(t))
    return dense.flatten().index_add(0, w.index, w.values.to(dtype)).reshape(w.shape).to(like.dtype)


def multiply(x: Tensor, w: Weight, geometry: Geometry) -> Tensor:
    """x w^T: (..., n_in) -> (..., n_out), or the convolution: (N, C, *spatial) -> (N, C_out, *spatial')."""
    return geometry.multiply(x, build(w, x))
