"""The same products by a w that is built, in plain differentiable operations: what every other route must equal."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from subspace.fixed import wide
from subspace.kernels import matrix
from subspace.kernels.geometry import Geometry


def weight(
    scale: Tensor | None, values: Tensor, index: Tensor, shape: tuple[int, ...], transform: str, like: Tensor
) -> Tensor:
    """w = scale T + S with the dtype and device of `like`; differentiable in scale and values, to any order."""
    dtype = wide(like.dtype)
    if scale is None:
        w = torch.zeros(shape, dtype=dtype, device=like.device)
    else:
        # Nothing kept: tensors born inside a torch.func transform belong to it.
        t = matrix.outer(*matrix.split(tuple(shape), transform, dtype, like.device), shape, transform)
        w = scale.to(dtype) * t
    return w.flatten().index_add(0, index, values.to(dtype)).reshape(shape).to(like.dtype)


def linear(
    x: Tensor, scale: Tensor | None, values: Tensor, index: Tensor, shape: tuple[int, ...], transform: str
) -> Tensor:
    """x w^T: (..., n_in) -> (..., n_out)."""
    return F.linear(x, weight(scale, values, index, shape, transform, x))


def conv(
    x: Tensor,
    scale: Tensor | None,
    values: Tensor,
    index: Tensor,
    shape: tuple[int, ...],
    transform: str,
    geometry: Geometry,
) -> Tensor:
    """The convolution with w: (N, C, *spatial) -> (N, C_out, *spatial')."""
    return geometry.convolve(x, weight(scale, values, index, shape, transform, x))
