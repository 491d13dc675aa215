"""Fast orthonormal transforms along the last axis, real in and out: DCT-II, its inverse, Walsh-Hadamard.

Each costs O(n log n) time and O(n) memory per row, computes half types in float32, and is one operator with its adjoint
as backward, so `torch.compile` sees no complex numbers and no graph breaks. The DCT goes through one real FFT of the
same length (Makhoul, "A fast cosine transform in one and two dimensions", 1980), for any n.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Transform = Callable[[Tensor], Tensor]


def dct(x: Tensor) -> Tensor:
    """Orthonormal DCT-II: (..., n) -> (..., n), y_k = c_k sum_i x_i cos(pi (2i + 1) k / 2n), c_0 = n^-1/2, c_k =
    (2/n)^1/2.

    >>> dct(torch.ones(4))
    tensor([2., 0., 0., 0.])
    """
    _check(x)
    y: Tensor = torch.ops.subspace.dct(x)
    return y


def idct(y: Tensor) -> Tensor:
    """Inverse, and transpose, of `dct`: (..., n) -> (..., n)."""
    _check(y)
    x: Tensor = torch.ops.subspace.idct(y)
    return x


def fwht(x: Tensor) -> Tensor:
    """Orthonormal Walsh-Hadamard transform in Sylvester's order, its own inverse: (..., n) -> (..., n), n a power of
    two.

    >>> fwht(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """
    _check(x)
    if (n := x.shape[-1]) & (n - 1):
        raise ValueError(f"the length of the last axis must be a power of two, got {n}")
    y: Tensor = torch.ops.subspace.fwht(x)
    return y


def _check(x: Tensor) -> None:
    if not x.is_floating_point():
        raise TypeError(f"x must be a real floating-point tensor, got {x.dtype}")
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"x must have a last axis of length at least 1, got shape {tuple(x.shape)}")


def _twiddles(n: int, radius: float, turn: int, like: Tensor) -> Tensor:
    """radius * exp(turn * i pi k / 2n), k = 0 ... n div 2; a lazy `conj()` instead is lost in compiled graphs."""
    angle = torch.arange(n // 2 + 1, dtype=torch.float64, device=like.device) * (turn * math.pi / (2 * n))
    return torch.polar(torch.full_like(angle, radius), angle).to(like.dtype.to_complex())


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


def _operator(name: str, transform: Transform, adjoint: str) -> None:
    """Register `subspace::name`: `transform`, in at least float32, with `subspace::adjoint` as backward."""

    def compute(x: Tensor) -> Tensor:
        if x.numel() == 0:
            return torch.empty_like(x, memory_format=torch.contiguous_format)
        wide = x if x.dtype == torch.float64 else x.float()
        return transform(wide).to(x.dtype).contiguous()

    def backward(_: object, gradient: Tensor) -> Tensor:
        y: Tensor = getattr(torch.ops.subspace, adjoint)(gradient)
        return y

    def vmap(_: object, in_dims: tuple[int], x: Tensor) -> tuple[Tensor, int]:
        return operator(x.movedim(in_dims[0], 0)), 0

    operator = torch.library.custom_op(f"subspace::{name}", compute, mutates_args=(), schema="(Tensor x) -> Tensor")
    operator.register_fake(lambda x: torch.empty_like(x, memory_format=torch.contiguous_format))
    operator.register_autograd(backward)
    operator.register_vmap(vmap)


_operator("dct", _dct, adjoint="idct")
_operator("idct", _idct, adjoint="dct")
_operator("fwht", _fwht, adjoint="fwht")
