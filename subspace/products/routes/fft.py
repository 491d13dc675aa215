"""T x and T^T y by fast transforms of the channels, at every row or pixel.

On up to two threads scipy's DCT is the fastest without a compiler; its own pool would fight with torch's, so with more
threads it is torch's FFT. The Hadamard transform is two products with small Hadamard matrices, its Kronecker factors.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import scipy
import torch
import torch.nn.functional as F
from torch import Tensor

from subspace._base.dtypes import at_least_float32
from subspace._base.transforms import _dct, _idct
from subspace.products.geometry import Geometry
from subspace.products.parts import matrix, pointwise, sparse
from subspace.products.parts.combine import combine
from subspace.products.problem import Problem
from subspace.products.routes.base import Route
from subspace.products.weight import Gradients, Needs, Weight

CHUNK = 1 << 18  # numbers at a time: beyond, every temporary costs page faults


class Fft(Route):
    """Transform the channels at every row or pixel."""

    name = "fft"
    layers = "Linear, Conv of one tap"
    how = "fast transforms of rows, or of the channels of every pixel"

    def supports(self, problem: Problem) -> bool:
        return problem.geometry.is_pointwise and problem.transform != "given"

    def counts(self, problem: Problem) -> tuple[float, ...]:
        return transform_counts(problem)

    def forward(self, x: Tensor, w: Weight, geometry: Geometry) -> Tensor:
        return pointwise.forward(_forward, x, w, geometry)

    def backward(self, gy: Tensor, x: Tensor, w: Weight, geometry: Geometry, needs: Needs) -> Gradients:
        return pointwise.backward(functools.partial(_backward, needs=needs), gy, x, w, geometry)


def transform_counts(problem: Problem) -> tuple[float, ...]:
    """Steps of the transforms, numbers moved, nonzeros times rows, nonzeros, the call."""
    rows, q = problem.rows, max(problem.shape[0], problem.shape[1] * problem.taps)
    return rows * q * math.log2(q + 1), problem.moved, problem.k * rows, problem.k, 1.0


def _forward(x: Tensor, w: Weight, geometry: Geometry) -> Tensor:
    """scale T x + S x, features along axis 1: (n, n_in, *pixels) -> (n, n_out, *pixels), contiguous."""
    n_out, n_in = w.fans
    if w.scale is None:
        y = x.new_zeros(len(x), n_out, *x.shape[2:])
    else:
        y, q = x.new_empty(len(x), n_out, *x.shape[2:]), max(n_out, n_in)
        for part in _chunks(x, q):
            torch.mul(_apply(x[part], q, w.transform, False).narrow(1, 0, n_out), w.scale, out=y[part])
    sparse.forward(x, w, geometry, y)
    return y


def _backward(gy: Tensor, x: Tensor, w: Weight, geometry: Geometry, needs: Needs) -> Gradients:
    """All gradients, with F = T^T gy a chunk at a time: scale F, <x, F>."""
    if w.scale is None or not (needs.x or needs.scale):
        return combine(None, gy, x, w, geometry, needs)
    n_out, n_in = w.fans
    gx, q = torch.empty_like(x, memory_format=torch.contiguous_format), max(n_out, n_in)
    gscale = w.scale.new_zeros((), dtype=at_least_float32(x.dtype))
    for part in _chunks(gy, q):
        product = _apply(gy[part], q, w.transform, True).narrow(1, 0, n_in)
        if needs.scale:
            gscale += matrix.dot(product, x[part])
        torch.mul(product, w.scale, out=gx[part])
    found = gx if needs.x else None
    gvalues = sparse.backward(gy, x, w, geometry, found, needs.values) if needs.x or needs.values else None
    return Gradients(found, gscale if needs.scale else None, gvalues)


def _chunks(x: Tensor, q: int) -> Iterator[slice]:
    each = max(1, CHUNK // (q * math.prod(x.shape[2:]))) if x.device.type == "cpu" else len(x)
    return (slice(first, first + each) for first in range(0, len(x), each))


def _apply(x: Tensor, q: int, transform: str, inverse: bool) -> Tensor:
    x = x.to(at_least_float32(x.dtype))
    if transform == "dct" and x.device.type == "cpu" and torch.get_num_threads() <= 2:
        function = scipy.fft.idct if inverse else scipy.fft.dct
        return torch.from_numpy(function(x.numpy(), n=q, axis=1, norm="ortho"))
    rows = x.transpose(1, -1)
    if transform == "dct":
        return (_idct if inverse else _dct)(F.pad(rows, (0, q - rows.shape[-1]))).transpose(1, -1)
    return _hadamard(rows, q).transpose(1, -1)


def _hadamard(x: Tensor, q: int) -> Tensor:
    """Its own inverse up to the truncation, which is the caller's: (..., n) -> (..., q)."""
    bits = (q - 1).bit_length()
    a, b = 1 << bits // 2, 1 << bits - bits // 2
    left, right = (matrix.build_transform((n, n), "hadamard", x) for n in (a, b))
    z = F.pad(x, (0, a * b - x.shape[-1])).reshape(*x.shape[:-1], a, b)
    y: Tensor = (left @ (z @ right)).flatten(-2)[..., :q] * math.sqrt(a * b / q)
    return y
