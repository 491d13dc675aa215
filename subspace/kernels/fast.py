"""T x and T^T y by fast transforms, without gradients: features along axis 1 of (n, features, *pixels).

On up to two threads scipy's DCT is the fastest without a compiler; its own pool would fight with torch's, so with more
threads it is torch's FFT. The Hadamard transform is two products with small Hadamard matrices, its Kronecker factors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import scipy.fft
import torch
import torch.nn.functional as F
from torch import Tensor

from subspace.fixed import wide
from subspace.kernels import matrix
from subspace.kernels.dense import Sparse, dot, finish
from subspace.kernels.product import Gradients, Needs
from subspace.patches import fans
from subspace.transforms import _dct, _idct

CHUNK = 1 << 18  # numbers at a time: beyond, every temporary costs page faults


def forward(x: Tensor, scale: Tensor | None, shape: tuple[int, ...], transform: str) -> Tensor:
    """scale T x, for None zero: (n, n_in, *pixels) -> (n, n_out, *pixels), contiguous."""
    n_out, n_in = fans(torch.Size(shape))
    if scale is None:
        return x.new_zeros(len(x), n_out, *x.shape[2:])
    y = x.new_empty(len(x), n_out, *x.shape[2:])
    q = max(n_out, n_in)
    for part in _chunks(x, q):
        torch.mul(_apply(x[part], q, transform, False).narrow(1, 0, n_out), scale, out=y[part])
    return y


def backward(
    sparse: Sparse,
    gy: Tensor,
    x: Tensor,
    scale: Tensor | None,
    needs: Needs,
    shape: tuple[int, ...],
    transform: str,
) -> Gradients:
    """All gradients, with F = T^T gy a chunk at a time: scale F, <x, F>; `sparse` as for `dense.finish`."""
    if scale is None or not (needs[0] or needs[1]):
        return finish(None, sparse, x, None, needs)
    n_out, n_in = fans(torch.Size(shape))
    gx, gscale = torch.empty_like(x, memory_format=torch.contiguous_format), scale.new_zeros((), dtype=wide(x.dtype))
    q = max(n_out, n_in)
    for part in _chunks(gy, q):
        product = _apply(gy[part], q, transform, True).narrow(1, 0, n_in)
        if needs[1]:
            gscale += dot(product, x[part])
        torch.mul(product, scale, out=gx[part])
    gvalues = sparse(gx if needs[0] else None, needs[2]) if needs[0] or needs[2] else None
    return gx if needs[0] else None, gscale if needs[1] else None, gvalues


def _chunks(x: Tensor, q: int) -> Iterator[slice]:
    each = max(1, CHUNK // (q * math.prod(x.shape[2:]))) if x.device.type == "cpu" else len(x)
    return (slice(first, first + each) for first in range(0, len(x), each))


def _apply(x: Tensor, q: int, transform: str, inverse: bool) -> Tensor:
    x = x.to(wide(x.dtype))
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
    left, right = (matrix.scaled(None, (n, n), "hadamard", x) for n in (a, b))
    z = F.pad(x, (0, a * b - x.shape[-1])).reshape(*x.shape[:-1], a, b)
    y: Tensor = (left @ (z @ right)).flatten(-2)[..., :q] * math.sqrt(a * b / q)
    return y
