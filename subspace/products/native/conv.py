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

from subspace.products.form import Layout
from subspace.products.geometry import Geometry
from subspace.products.native import load
from subspace.products.native.bound import Bound
from subspace.products.native.load import check, pointers
from subspace.products.problem import Problem
from subspace.products.sparse_index import cached_per_index, sorting
from subspace.products.weight import Gradients, Needs, Weight

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
    return _declared(load.library())


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
    """(rows, depth) in blocks of at most `most` rows: (blocks, depth, rows of a block), float32."""
    n_rows, depth = matrix.shape
    blocks = -(-n_rows // most)
    rows = -(-n_rows // blocks)
    padded = F.pad(matrix, (0, 0, 0, blocks * rows - n_rows)).view(blocks, rows, depth)
    kept.append(padded.transpose(1, 2).float().contiguous())
    return _Matrix(kept[-1].data_ptr(), blocks, rows, depth)


@functools.lru_cache(maxsize=64)
def _factors(n_out: int, channels: int, kh: int, kw: int, most: int) -> _Kept:
    """most: rows of a block, as many as the registers of the instruction set hold."""
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


def _geometry(x: Tensor, w: Weight, geometry: Geometry) -> _Geometry:
    _, stride, padding, dilation, groups = geometry
    return _Geometry(*x.shape, w.shape[0], *w.shape[2:], *stride, *padding, *dilation, groups)


class _Sorted(NamedTuple):
    """slots: of the places in their order; places: those. Both None where the index is sorted already."""

    slots: Tensor | None
    places: Tensor | None


def _sorted(index: Tensor) -> _Sorted:
    slots = sorting(index)
    return _Sorted(slots, None if slots is None else index[slots])


def _plain(w: Weight) -> tuple[Weight, Tensor | None]:
    """With float32 values and an index that C++ can read, sorted; and the slots in that order, if w's is another."""
    if (w.index.shape, w.index.dtype) != (w.values.shape, torch.int64):
        raise ValueError(f"index must be {len(w.values)} int64, got {len(w.index)} {w.index.dtype}")
    slots, places = cached_per_index(w.index, _sorted)
    if slots is None or places is None:
        return w._replace(values=w.values.float().contiguous(), index=w.index.contiguous()), None
    return w._replace(values=w.values.float()[slots], index=places), slots


def _by_slot(gvalues: Tensor, slots: Tensor | None) -> Tensor:
    """The gradients to values that are in this order."""
    return gvalues if slots is None else torch.empty_like(gvalues).index_copy_(0, slots, gvalues)


def _entries(w: Weight) -> tuple[int | None, int | None, int]:
    return *pointers(w.values, w.index), w.values.shape[0]  # type: ignore[return-value]


def _dense(w: Weight) -> tuple[_Factors | None, float]:
    if w.scale is None:
        return None, 0.0
    return _factors(*w.shape, _library().subspace_conv_rows()).factors, w.scale.item()


def bind(problem: Problem, layout: Layout, index: Tensor) -> Bound | None:
    """The convolution bound to theta; None for an index that is not sorted, whose values lie in another order."""
    if cached_per_index(index, _sorted).slots is not None:
        return None
    _, stride, padding, dilation, groups = problem.geometry
    sizes = _Geometry(*problem.x_shape, problem.shape[0], *problem.shape[2:], *stride, *padding, *dilation, groups)
    factors = None if problem.transform == "zero" else _factors(*problem.shape, _library().subspace_conv_rows())
    places = index.detach().contiguous()  # lasts, whatever becomes of index
    threads, library = torch.get_num_threads(), _library()

    def run(x: int, y: int, scale: float, values: int) -> Any:
        entries = values, places.data_ptr(), len(places)
        return library.subspace_conv_forward(sizes, factors and factors.factors, scale, x, *entries, y, threads)

    def run_back(
        gy: int, x: int, gx: int | None, gscale: int | None, gvalues: int | None, scale: float, values: int
    ) -> Any:
        entries, into = (values, places.data_ptr(), len(places)), (gx, gscale, gvalues)
        dense = factors and factors.factors
        return library.subspace_conv_backward(sizes, dense, scale, gy, x, *entries, *into, threads)

    return Bound(layout, run, run_back)


def forward(x: Tensor, w: Weight, geometry: Geometry) -> Tensor:
    """The convolution, stride 1, groups 1: (N, C, H, W) -> (N, C_out, H', W'), contiguous float32."""
    x, (w, _) = x.contiguous(), _plain(w)
    y = x.new_empty(len(x), w.shape[0], *geometry.sizes(tuple(x.shape[2:])))
    if y.numel():
        sizes, threads = _geometry(x, w, geometry), torch.get_num_threads()
        check(_library().subspace_conv_forward(sizes, *_dense(w), *pointers(x), *_entries(w), *pointers(y), threads))
    return y


def backward(gy: Tensor, x: Tensor, w: Weight, geometry: Geometry, needs: Needs) -> Gradients:
    """The gradients, that to the scale of one element."""
    gy, x, (w, slots) = gy.contiguous(), x.contiguous(), _plain(w)
    gx = torch.empty_like(x) if needs.x else None
    gscale = x.new_zeros(1) if needs.scale and w.scale is not None else None
    gvalues = torch.zeros_like(w.values) if needs.values else None
    if gy.numel():
        sizes, threads = _geometry(x, w, geometry), torch.get_num_threads()
        data, out = pointers(gy, x), pointers(gx, gscale, gvalues)
        check(_library().subspace_conv_backward(sizes, *_dense(w), *data, *_entries(w), *out, threads))
    return Gradients(gx, gscale, None if gvalues is None else _by_slot(gvalues, slots))


def add_sparse(x: Tensor, w: Weight, geometry: Geometry, y: Tensor) -> None:
    """y += S * x in place, 2-d, any geometry, contiguous float32 on the CPU."""
    if y.numel():
        (w, _), threads = _plain(w), torch.get_num_threads()
        entries, sizes = _entries(w), _geometry(x, w, geometry)
        check(_library().subspace_sparse_conv_forward(sizes, *pointers(x), *entries, *pointers(y), threads))


def add_sparse_gradients(
    gy: Tensor, x: Tensor, w: Weight, geometry: Geometry, gx: Tensor | None, gvalues: Tensor | None
) -> None:
    """gx += S^T gy and gvalues += S's dot products, in place where given."""
    if gy.numel():
        (w, slots), threads = _plain(w), torch.get_num_threads()
        entries, sizes = _entries(w), _geometry(x, w, geometry)
        found = torch.zeros_like(w.values)
        out = pointers(gx, found)
        check(_library().subspace_sparse_conv_backward(sizes, *pointers(gy, x), *entries, *out, threads))
        if gvalues is not None:
            gvalues += _by_slot(found, slots)
