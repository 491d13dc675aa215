"""The compiled product of rows with scale T + S (cpp/rows.h), T by fast transforms."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from subspace.products.geometry import Geometry
from subspace.products.native import load
from subspace.products.native.load import check, pointers
from subspace.products.sparse_index import of_matrix
from subspace.products.weight import Gradients, Needs, Weight

TRANSFORMS = {"zero": 0, "dct": 1, "hadamard": 2}

_I, _N, _P, _F = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p, ctypes.c_float
_SIZES: list[Any] = [_N, _N, _N, _N, _I, _F]  # rows, pixels, n_out, n_in, transform, scale


def _library() -> ctypes.CDLL:
    return _declared(load.library())


@functools.cache
def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    library.subspace_smooth.argtypes = [_N]
    library.subspace_rows_forward.argtypes = [_P, _P, *_SIZES, _P, _P, _P, _N, _I]
    library.subspace_rows_backward.argtypes = [_P, _P, _P, _P, _P, *_SIZES, _P, _P, _P, _P, _N, _I]
    return library


@functools.cache
def is_fast_length(q: int) -> bool:
    """Whether a DCT of length q is fast: its prime factors are up to 31."""
    return bool(_library().subspace_smooth(q))


def forward(x: Tensor, w: Weight, geometry: Geometry) -> Tensor:
    """x w^T in float32: (rows, n_in) -> (rows, n_out), or over the channels: (N, C, *pixels) -> (N, C_out, *pixels)."""
    n_out, n_in = w.fans
    x, values = x.float().contiguous(), w.values.float().contiguous()
    y = x.new_empty(x.shape[0], n_out, *x.shape[2:])
    if y.numel():
        bags = of_matrix(w.index, n_out, n_in)
        by_row = bags.rows(values)
        check(
            _library().subspace_rows_forward(
                *pointers(x, y),
                *_sizes(y, w),
                *pointers(by_row, bags.row_starts, bags.column),
                values.shape[0],
                torch.get_num_threads(),
            )
        )
    return y


def backward(gy: Tensor, x: Tensor, w: Weight, geometry: Geometry, needs: Needs) -> Gradients:
    """The gradients in float32, that to the scale of one element."""
    gy, x, values = gy.float().contiguous(), x.float().contiguous(), w.values.float().contiguous()
    gx = torch.empty_like(x) if needs.x else None
    gscale = x.new_zeros(1) if needs.scale and w.scale is not None else None
    gvalues = torch.zeros_like(values) if needs.values else None
    if gy.numel():
        bags = of_matrix(w.index, *w.fans)
        by_column = values.index_select(0, bags.by_column)
        check(
            _library().subspace_rows_backward(
                *pointers(gy, x, gx, gscale, gvalues),
                *_sizes(gy, w),
                *pointers(by_column, bags.column_starts, bags.row_by_column, bags.by_column),
                values.shape[0],
                torch.get_num_threads(),
            )
        )
    return Gradients(gx, gscale, gvalues)


def _sizes(y: Tensor, w: Weight) -> tuple[int, int, int, int, int, float]:
    n_out, n_in = w.fans
    scale = 0.0 if w.scale is None else w.scale.item()
    return y.numel() // n_out, y.shape[2:].numel(), n_out, n_in, TRANSFORMS[w.transform], scale
