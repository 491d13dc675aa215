"""Fast orthonormal transforms along the last axis, real in and out: DCT-II, Walsh-Hadamard, Haar, and their inverses.

Each costs O(n log n) time, Haar's O(n), and O(n) memory per row, computes half types in float32, and is one operator
with its adjoint as backward, so `torch.compile` sees no complex numbers and no graph breaks. The DCT goes through one
real FFT of the same length (Makhoul, "A fast cosine transform in one and two dimensions", 1980), for any n.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from subspace._base.linear_map import LinearMap
from subspace._base.waves import waves


def dct(x: Tensor) -> Tensor:
    """Orthonormal DCT-II along the last axis.

    y_k = c_k sum_i x_i cos(pi (2i + 1) k / 2n), with c_0 = (1/n)^1/2, else c_k = (2/n)^1/2.

    Args:
        x: (..., n), real floating-point.

    Returns:
        y: (..., n), of the dtype of x.

    Raises:
        TypeError: If x is not real floating-point.
        ValueError: If x has no last axis, or an empty one.

    >>> dct(torch.tensor([3.0, 1.0])) * 2**0.5
    tensor([4.0000, 2.0000])
    """
    _check(x)
    return _DCT(x)


def idct(y: Tensor) -> Tensor:
    """Inverse, and transpose, of `dct`, with its arguments and errors: (..., n) -> (..., n)."""
    _check(y)
    return _IDCT(y)


def fwht(x: Tensor) -> Tensor:
    """Orthonormal Walsh-Hadamard transform along the last axis, its own inverse, in Sylvester's order.

    y_j = n^-1/2 sum_i (-1)^(number of bits that i and j share) x_i.

    Args:
        x: (..., n), real floating-point, n a power of two.

    Returns:
        y: (..., n), of the dtype of x.

    Raises:
        TypeError: If x is not real floating-point.
        ValueError: If n is no power of two, or x has no last axis.

    >>> fwht(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """
    _check(x)
    if (n := x.shape[-1]) & (n - 1):
        raise ValueError(f"the length of the last axis must be a power of two, got {n}")
    return _FWHT(x)


def block_fwht(x: Tensor, block: int | None = None) -> Tensor:
    """Walsh-Hadamard transforms of consecutive pieces of the last axis, for any n; orthonormal and its own inverse.

    The pieces are as many of length `block` as there is room for, and after them those of the binary digits of what is
    left, the largest first: 11 is 4 + 4 + 2 + 1 for a block of 4.

    Args:
        x: (..., n), real floating-point.
        block: A power of two; by default the largest that is at most n.

    Returns:
        y: (..., n), of the dtype of x.

    Raises:
        TypeError, ValueError: As `fwht`.

    >>> block_fwht(torch.tensor([1.0, 0.0, 0.0, 0.0, 3.0]))
    tensor([0.5000, 0.5000, 0.5000, 0.5000, 3.0000])
    """
    _check(x)
    n = x.shape[-1]
    start, left, block = 0, n, block or 1 << (n.bit_length() - 1)
    parts = []
    while left:
        size = min(block, 1 << (left.bit_length() - 1))
        stop = start + left // size * size
        pieces = x[..., start:stop].reshape(*x.shape[:-1], left // size, size)
        parts.append(fwht(pieces).flatten(-2))
        start, left = stop, n - stop
    return torch.cat(parts, -1)


def haar(x: Tensor) -> Tensor:
    """Orthonormal Haar transform along the last axis, for any n.

    Level by level, each pair of averages (a, b) becomes the average (a + b) / 2^1/2 of the next level and the detail
    (a - b) / 2^1/2; a last one without a partner goes on as it is.

    Args:
        x: (..., n), real floating-point.

    Returns:
        y: (..., n), of the dtype of x: the last average, and the details from the coarsest level to the finest.

    Raises:
        TypeError: If x is not real floating-point.
        ValueError: If x has no last axis, or an empty one.

    >>> haar(torch.tensor([1.0, 1.0, 1.0, 3.0]))
    tensor([ 3.0000, -1.0000,  0.0000, -1.4142])
    """
    _check(x)
    return _HAAR(x)


def ihaar(y: Tensor) -> Tensor:
    """Inverse, and transpose, of `haar`, with its arguments and errors: (..., n) -> (..., n)."""
    _check(y)
    return _IHAAR(y)


def _check(x: Tensor) -> None:
    if not x.is_floating_point():
        raise TypeError(f"x must be a real floating-point tensor, got {x.dtype}")
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"x must have a last axis of length at least 1, got shape {tuple(x.shape)}")


def _twiddles(n: int, radius: float, turn: int, like: Tensor) -> Tensor:
    """radius * exp(turn * i pi k / 2n), k = 0 ... n div 2; a lazy `conj()` instead is lost in compiled graphs."""
    cos, sin = waves(4 * n, n // 2 + 1, radius, like.dtype, like.device)
    return torch.complex(cos, turn * sin)


def _dct(x: Tensor) -> Tensor:
    n = x.shape[-1]
    v = torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], -1)
    z = torch.view_as_real(torch.fft.rfft(v) * _twiddles(n, math.sqrt(2 / n), -1, x))
    y = torch.cat([z[..., 0], -z[..., 1 : (n + 1) // 2, 1].flip(-1)], -1)
    y[..., 0] *= math.sqrt(0.5)
    return y


def _idct(y: Tensor) -> Tensor:
    n = y.shape[-1]
    half = n // 2
    imaginary = torch.zeros_like(y[..., : half + 1])
    imaginary[..., 1:] = -y[..., n - half :].flip(-1)
    z = torch.complex(y[..., : half + 1].contiguous(), imaginary)
    z[..., 0] *= math.sqrt(2)
    v = torch.fft.irfft(z * _twiddles(n, math.sqrt(n / 2), +1, y), n)
    x = torch.empty_like(y)
    x[..., ::2] = v[..., : (n + 1) // 2]
    x[..., 1::2] = v[..., (n + 1) // 2 :].flip(-1)
    return x


def _fwht(x: Tensor) -> Tensor:
    n, step = x.shape[-1], 1
    y = x / math.sqrt(n)
    while step < n:
        pairs = y.reshape(*x.shape[:-1], n // (2 * step), 2, step)
        a, b = pairs.unbind(-2)
        y = torch.stack([a + b, a - b], -2)
        step *= 2
    return y.reshape(x.shape)


def _haar(x: Tensor) -> Tensor:
    details = []
    while (n := x.shape[-1]) > 1:
        a, b = x[..., : n - 1 : 2], x[..., 1::2]
        details.append((a - b) * math.sqrt(0.5))
        x = torch.cat([(a + b) * math.sqrt(0.5), x[..., n - n % 2 :]], -1)
    return torch.cat([x, *reversed(details)], -1)


def _ihaar(y: Tensor) -> Tensor:
    lengths = [y.shape[-1]]
    while lengths[-1] > 1:
        lengths.append((lengths[-1] + 1) // 2)
    x = y[..., :1].clone()
    for averages, n in zip(lengths[:0:-1], lengths[-2::-1], strict=True):
        pairs = n // 2
        mean, detail = x[..., :pairs], y[..., averages:n]
        both = torch.stack([mean + detail, mean - detail], -1).flatten(-2) * math.sqrt(0.5)
        x = torch.cat([both, x[..., pairs:]], -1)
    return x


def _transform(name: str, transform: Callable[[Tensor], Tensor]) -> LinearMap:
    def product(x: Tensor) -> Tensor:
        return plain(x) if x.numel() else like(x)  # nothing, which some FFT libraries refuse

    def plain(x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        return transform(wide).to(x.dtype).contiguous()

    def like(x: Tensor) -> Tensor:
        return torch.empty_like(x, memory_format=torch.contiguous_format)

    return LinearMap(name, product, like, plain=plain)


_DCT, _IDCT, _FWHT = _transform("dct", _dct), _transform("idct", _idct), _transform("fwht", _fwht)
_HAAR, _IHAAR = _transform("haar", _haar), _transform("ihaar", _ihaar)
_DCT.adjoint, _IDCT.adjoint = _IDCT, _DCT
_HAAR.adjoint, _IHAAR.adjoint = _IHAAR, _HAAR
