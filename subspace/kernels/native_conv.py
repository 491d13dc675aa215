"""The compiled 2-d convolution (cpp/conv.h) and the sparse part alone, contiguous float32 on the CPU.

D is given to it in thin factors, as in `factors`, but with angles from the middle channel: column (tap, ch) of row o is
c_o cos(a + b), a = pi C o (tap + 1/2) / q and b = pi o (ch - (C - 1) / 2) / q. The cosines of b are even in the channel
and the sines odd, so that each of the two parts has half of the rank and half of the channels.
"""

from __future__ import annotations

import ctypes
import functools
import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from subspace.kernels import native

TOLERANCE = 1e-7  # singular values below this part of the largest are dropped; float32 resolves 6e-8

_N, _P = ctypes.c_int64, ctypes.c_void_p
_ENTRIES: list[Any] = [_P, _P, _N]  # values, index, k


class _Geometry(ctypes.Structure):
    names = "images c h w o kh kw sh sw ph pw dh dw groups"
    _fields_ = [(name, _N) for name in names.split()]


class _Matrix(ctypes.Structure):
    _fields_ = [("data", _P), ("blocks", _N), ("rows", _N), ("depth", _N)]


class _Factors(ctypes.Structure):
    _fields_ = [
        *((name, _Matrix * 2) for name in ("analysis", "synthesis", "analysis_t", "synthesis_t")),
        ("columns", _P),
        ("row_taps", _P),
    ]


class _Kept(NamedTuple):
    """The factors and the tensors that they point to."""

    factors: _Factors
    tensors: list[Tensor]


def _library() -> ctypes.CDLL:
    library = native.library()
    if library is None:
        raise RuntimeError(f"the native route needs the compiled kernels, got none: {native.status()}")
    return _declared(library)


@functools.cache
def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    geometry: Any = ctypes.POINTER(_Geometry)
    dense: list[Any] = [ctypes.POINTER(_Factors), ctypes.c_float]
    library.subspace_conv_forward.argtypes = [geometry, *dense, _P, *_ENTRIES, _P, ctypes.c_int]
    library.subspace_conv_backward.argtypes = [geometry, *dense, _P, _P, *_ENTRIES, _P, _P, _P, ctypes.c_int]
    library.subspace_sparse_conv_forward.argtypes = [geometry, _P, *_ENTRIES, _P, ctypes.c_int]
    library.subspace_sparse_conv_backward.argtypes = [geometry, _P, _P, *_ENTRIES, _P, _P, ctypes.c_int]
    return library


def _blocks(matrix: Tensor, most: int, kept: list[Tensor]) -> _Matrix:
    """(rows, depth) in blocks of at most so many rows: (blocks, depth, rows of a block), float32."""
    n_rows, depth = matrix.shape
    blocks = -(-n_rows // most)
    rows = -(-n_rows // blocks)
    padded = F.pad(matrix, (0, 0, 0, blocks * rows - n_rows)).view(blocks, rows, depth)
    kept.append(padded.transpose(1, 2).float().contiguous())
    return _Matrix(kept[-1].data_ptr(), blocks, rows, depth)


@functools.lru_cache(maxsize=64)
def _factors(n_out: int, channels: int, kh: int, kw: int, most: int) -> _Kept:
    """For blocks of at most so many rows, as many as the registers of the instruction set hold."""
    q = max(n_out, channels * kh * kw)
    o = torch.arange(n_out, dtype=torch.float64)[:, None]
    norm = torch.full_like(o, math.sqrt(2 / q))
    norm[0] = math.sqrt(1 / q)
    b = math.pi * o * (torch.arange((channels + 1) // 2) - (channels - 1) / 2) / q
    found = [torch.linalg.svd(norm * part, full_matrices=False) for part in (b.cos(), b.sin())]
    least = TOLERANCE * max(float(singular[0]) for _, singular, _ in found)
    ranks = [max(1, int((singular > least).sum())) for _, singular, _ in found]
    thin = [left[:, :r] * singular[:r] for (left, singular, _), r in zip(found, ranks, strict=True)]
    basis = [right[:r] for (_, _, right), r in zip(found, ranks, strict=True)]
    angle = math.pi * channels * o / q
    columns = angle * (torch.arange(kw // 2) + (1 if kw % 2 else 0.5))
    rows = angle * (torch.arange(kh) * kw + kw / 2)
    tensors = [torch.stack([turn.cos(), turn.sin()], -1).float() for turn in (columns, rows)]
    pointers = [t.data_ptr() for t in tensors]
    pairs = [basis, thin, [m.T for m in basis], [m.T for m in thin]]
    matrices = [(_Matrix * 2)(*(_blocks(matrix, most, tensors) for matrix in pair)) for pair in pairs]
    return _Kept(_Factors(*matrices, *pointers), tensors)


def _geometry(
    x: Tensor,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> _Geometry:
    return _Geometry(*x.shape, shape[0], *shape[2:], *stride, *padding, *dilation, groups)


def _entries(values: Tensor, index: Tensor) -> tuple[int, int, int]:
    if (len(index), index.dtype) != (len(values), torch.int64):
        raise ValueError(f"index must be {len(values)} int64, got {len(index)} {index.dtype}")
    return values.data_ptr(), index.data_ptr(), len(values)


def _pointer(t: Tensor | None) -> int | None:
    return None if t is None else t.data_ptr()


def _dense(shape: tuple[int, ...], transform: str, scale: Tensor | None) -> tuple[_Factors | None, float]:
    if transform == "zero":
        return None, 0.0
    return _factors(*shape, _library().subspace_conv_rows()).factors, float(1 if scale is None else scale)


def _check(failed: int) -> None:
    if failed == 2:
        raise ValueError("index must be sorted and in the range of the weight, got one that is not")
    if failed:
        raise MemoryError("the compiled convolution must have memory for its planes, got none")


def takes_conv(shape: tuple[int, ...], transform: str, x: Tensor, stride: tuple[int, ...], groups: int) -> bool:
    """Whether `conv` can do this: 2-d, contiguous, float32 on the CPU, stride 1, groups 1, dct or zero, taps > 1."""
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and x.is_contiguous() and native.available()
    simple = len(shape) == 4 and math.prod(shape[2:]) > 1 and set(stride) == {1} and groups == 1
    return plain and simple and transform in ("dct", "zero")


def conv(
    x: Tensor,
    scale: Tensor | None,
    values: Tensor,
    index: Tensor,
    shape: tuple[int, ...],
    transform: str,
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Tensor:
    """The convolution, stride 1, groups 1: (N, C, H, W) -> (N, C_out, H', W'), contiguous float32."""
    x, values, index = x.contiguous(), values.contiguous(), index.contiguous()
    sizes = zip(x.shape[2:], shape[2:], padding, dilation, strict=True)
    y = x.new_empty(len(x), shape[0], *(size + 2 * p - d * (k - 1) for size, k, p, d in sizes))
    if y.numel():
        geometry, entries = _geometry(x, shape, (1, 1), padding, dilation, 1), _entries(values, index)
        dense, threads = _dense(shape, transform, scale), torch.get_num_threads()
        _check(_library().subspace_conv_forward(geometry, *dense, x.data_ptr(), *entries, y.data_ptr(), threads))
    return y


def conv_backward(
    gy: Tensor,
    x: Tensor,
    scale: Tensor | None,
    values: Tensor,
    index: Tensor,
    needs: tuple[bool, bool, bool],
    shape: tuple[int, ...],
    transform: str,
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(gx, gscale of one element, gvalues), None where not needed."""
    gy, x, values, index = gy.contiguous(), x.contiguous(), values.contiguous(), index.contiguous()
    gx = torch.empty_like(x) if needs[0] else None
    gscale = x.new_zeros(1) if needs[1] and transform != "zero" else None
    gvalues = torch.zeros_like(values) if needs[2] else None
    if gy.numel():
        geometry, entries = _geometry(x, shape, (1, 1), padding, dilation, 1), _entries(values, index)
        dense, threads = _dense(shape, transform, scale), torch.get_num_threads()
        gradients = (_pointer(t) for t in (gx, gscale, gvalues))
        data = gy.data_ptr(), x.data_ptr()
        _check(_library().subspace_conv_backward(geometry, *dense, *data, *entries, *gradients, threads))
    return gx, gscale, gvalues


def sparse_conv(
    x: Tensor,
    values: Tensor,
    index: Tensor,
    shape: tuple[int, ...],
    out: Tensor,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> None:
    """out += S * x in place, 2-d, any geometry, contiguous float32 on the CPU."""
    if out.numel():
        values, index = values.contiguous(), index.contiguous()
        geometry, entries = _geometry(x, shape, stride, padding, dilation, groups), _entries(values, index)
        threads = torch.get_num_threads()
        _check(_library().subspace_sparse_conv_forward(geometry, x.data_ptr(), *entries, out.data_ptr(), threads))


def sparse_conv_backward(
    gy: Tensor,
    x: Tensor,
    values: Tensor,
    index: Tensor,
    shape: tuple[int, ...],
    gx: Tensor | None,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Tensor:
    """gx += S^T gy in place, where given; returns gvalues."""
    values, index = values.contiguous(), index.contiguous()
    gvalues = torch.zeros_like(values)
    if gy.numel():
        geometry, entries = _geometry(x, shape, stride, padding, dilation, groups), _entries(values, index)
        data, out = (gy.data_ptr(), x.data_ptr()), (_pointer(gx), gvalues.data_ptr())
        _check(_library().subspace_sparse_conv_backward(geometry, *data, *entries, *out, torch.get_num_threads()))
    return gvalues
