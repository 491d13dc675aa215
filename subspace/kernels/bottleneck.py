"""T * x for kernels of more than one tap by torch's own products: a basis of few channels, then a convolution.

T is a product of thin factors (`factors`): a basis of r channels, 17 for 64 and 72 for 512 in float32, and then
n_out x r kernels. Zero padding commutes with the basis; with groups, each group's channels go through the same one.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from subspace.kernels import sparse_conv
from subspace.kernels.dense import Sparse, finish
from subspace.kernels.factors import factors
from subspace.kernels.geometry import Geometry
from subspace.kernels.product import Gradients, Needs, memory_format

TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6}  # of the factors; half types: 1e-3


def forward(
    x: Tensor,
    scale: Tensor | None,
    values: Tensor,
    index: Tensor,
    shape: tuple[int, ...],
    transform: str,
    geometry: Geometry,
) -> Tensor:
    """scale T * x + S * x: (N, C, *spatial) -> (N, C_out, *spatial'); transform: "dct" or, scale None, "zero"."""
    if scale is None:
        y = x.new_zeros(x.shape[0], shape[0], *geometry.sizes(tuple(x.shape[2:])))
    else:
        basis, kernel = _layers(shape, x.dtype, x.device)
        z = _mix(basis, x, geometry.groups)
        y = geometry.convolve(z, kernel * scale.to(kernel))
    sparse_conv.forward(x, values, index, shape, geometry, y)
    return y


def backward(
    by_bags: Sparse,
    gy: Tensor,
    x: Tensor,
    scale: Tensor | None,
    needs: Needs,
    shape: tuple[int, ...],
    transform: str,
    geometry: Geometry,
) -> Gradients:
    """All gradients; by_bags: the sparse part's, as for `dense.finish`."""
    product = None
    if scale is not None and (needs[0] or needs[1]):
        basis, kernel = _layers(shape, x.dtype, x.device)
        z = x.new_empty(x.shape[0], geometry.groups * len(basis), *x.shape[2:]).contiguous(
            memory_format=memory_format(x)
        )
        gz, _ = geometry.gradients(gy, z, kernel, True, False)
        product = _mix(basis.t(), gz, geometry.groups)  # type: ignore[arg-type]
    return finish(product, by_bags, x, scale, needs)


def _mix(matrix: Tensor, x: Tensor, groups: int) -> Tensor:
    """The matrix (r, C) over the channels of each group: (N, groups C, *spatial) -> (N, groups r, *spatial).

    By torch.matmul, in the format of x: oneDNN's 1x1 convolution would first put x into its own.
    """
    if memory_format(x) == torch.contiguous_format:
        planes = x.reshape(len(x), groups, matrix.shape[1], -1)
        return (matrix @ planes).view(len(x), -1, *x.shape[2:])
    rows = x.movedim(1, -1)
    return (rows.reshape(*rows.shape[:-1], groups, -1) @ matrix.t()).flatten(-2).movedim(-1, 1)


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def _layers(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """basis: (r, C), and the kernel, a weight: (n_out, r, *kernel)."""
    found = factors(shape[0], shape[1], math.prod(shape[2:]), TOLERANCE.get(dtype, 1e-3))
    kernel = found.kernel().reshape(shape[0], -1, *shape[2:])
    return found.basis.to(device, dtype), kernel.to(device, dtype)
