"""T * x for kernels of more than one tap by torch's own products: a basis of few channels, then a convolution.

T is a product of thin factors (`factors`): a basis of r channels, 17 for 64 and 72 for 512 in float32, and then
n_out x r kernels. Zero padding commutes with the basis; with groups, each group's channels go through the same one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from subspace._base.constants import keep_constants
from subspace.products.geometry import Geometry, memory_format
from subspace.products.parts import sparse
from subspace.products.parts.combine import combine
from subspace.products.parts.factors import factors, rank
from subspace.products.problem import Problem
from subspace.products.routes.base import Route
from subspace.products.weight import Gradients, Needs, Weight

TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6}  # of the factors; half types: 1e-3


class Bottleneck(Route):
    """Convolve in the few channels that the DCT is made of."""

    name = "bottleneck"
    layers = "Conv of several taps"
    how = "the DCT by two convolutions, as it is of low rank (for the DCT and S alone)"

    def supports(self, problem: Problem) -> bool:
        return problem.taps > 1 and problem.transform in ("dct", "zero")

    def counts(self, problem: Problem) -> tuple[float, ...]:
        n_out, channels = problem.shape[:2]
        r, rows = rank(problem), problem.rows
        pixels = math.prod(problem.x_shape) // problem.x_shape[1]
        flops = 4.0 * r * (channels * pixels + problem.taps * n_out * rows)
        return flops, problem.moved + r * (rows + pixels), problem.k * rows, problem.k, 1.0

    def forward(self, x: Tensor, w: Weight, geometry: Geometry) -> Tensor:
        if w.scale is None:
            y = x.new_zeros(x.shape[0], w.shape[0], *geometry.sizes(tuple(x.shape[2:])))
        else:
            basis, kernel = _layers(w.shape, x.dtype, x.device)
            y = geometry.multiply(_mix(basis, x, geometry.groups), (kernel * w.scale).to(kernel.dtype))
        sparse.forward(x, w, geometry, y)
        return y

    def backward(self, gy: Tensor, x: Tensor, w: Weight, geometry: Geometry, needs: Needs) -> Gradients:
        product = None
        if w.scale is not None and (needs.x or needs.scale):
            basis, kernel = _layers(w.shape, x.dtype, x.device)
            z = x.new_empty(x.shape[0], geometry.groups * len(basis), *x.shape[2:])
            z = z.contiguous(memory_format=memory_format(x))
            gz, _ = geometry.gradients(gy, z, kernel, True, False)
            product = _mix(basis.t(), gz, geometry.groups)  # type: ignore[arg-type]
        return combine(product, gy, x, w, geometry, needs)


def _mix(matrix: Tensor, x: Tensor, groups: int) -> Tensor:
    """The matrix (r, C) over the channels of each group: (N, groups C, *spatial) -> (N, groups r, *spatial).

    By torch.matmul, in the format of x: oneDNN's 1x1 convolution would first put x into its own.
    """
    if memory_format(x) == torch.contiguous_format:
        planes = x.reshape(len(x), groups, matrix.shape[1], -1)
        return (matrix @ planes).view(len(x), -1, *x.shape[2:])
    rows = x.movedim(1, -1)
    return (rows.reshape(*rows.shape[:-1], groups, -1) @ matrix.t()).flatten(-2).movedim(-1, 1)


@keep_constants(64)
def _layers(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """basis: (r, C), and the kernel, a weight: (n_out, r, *kernel)."""
    found = factors(shape[0], shape[1], math.prod(shape[2:]), TOLERANCE.get(dtype, 1e-3))
    kernel = found.kernel().reshape(shape[0], -1, *shape[2:])
    return found.basis.to(device, dtype), kernel.to(device, dtype)
