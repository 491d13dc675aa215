"""The compiled product of rows with scale T + S (cpp/rows.h), T by fast transforms."""

from __future__ import annotations

import ctypes
import functools
import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from subspace.products.form import Layout
from subspace.products.geometry import Geometry
from subspace.products.native import load
from subspace.products.native.bound import Bound
from subspace.products.native.load import check, pointers
from subspace.products.problem import Problem
from subspace.products.sparse_index import Bags, cached_per_index, of_matrix
from subspace.products.weight import Gradients, Needs, Weight

TRANSFORMS = {"zero": 0, "dct": 1, "hadamard": 2}

_I, _N, _P, _F = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p, ctypes.c_float


class _Product(ctypes.Structure):
    """A product without its numbers; it holds what it points to."""

    bags: Bags
    _fields_ = [
        *((name, _N) for name in ("rows", "pixels", "n_out", "n_in", "k")),
        *((name, _I) for name in ("transform", "threads")),
        *((name, _P) for name in ("row_starts", "column", "by_row", "column_starts", "row", "by_column")),
    ]


def _library() -> ctypes.CDLL:
    return _declared(load.library())


@functools.cache
def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    library.subspace_smooth.argtypes = [_N]
    product: Any = ctypes.POINTER(_Product)
    library.subspace_rows_forward.argtypes = [product, _P, _P, _F, _P]
    library.subspace_rows_backward.argtypes = [product, _P, _P, _P, _P, _P, _F, _P]
    return library


@functools.cache
def is_fast_length(q: int) -> bool:
    """Whether a DCT of length q is fast: its prime factors are up to 31."""
    return bool(_library().subspace_smooth(q))


def bind(problem: Problem, layout: Layout, index: Tensor) -> Bound:
    """The product bound to theta: of rows, or over the channels of every pixel of x."""
    pixels, threads = math.prod(problem.x_shape[2:]), torch.get_num_threads()
    rows, pixels = problem.x_shape[0] * pixels, 1 if problem.channels_last else pixels
    n_out, n_in = problem.shape[:2]
    product = _product(index, n_out, n_in, problem.transform, rows, pixels, threads)
    run, run_back = _library().subspace_rows_forward, _library().subspace_rows_backward
    return Bound(layout, partial(run, product), partial(run_back, product))


def forward(x: Tensor, w: Weight, geometry: Geometry) -> Tensor:
    """x w^T in float32: (rows, n_in) -> (rows, n_out), or over the channels: (N, C, *pixels) -> (N, C_out, *pixels)."""
    x, values = x.float().contiguous(), w.values.float().contiguous()
    y = x.new_empty(x.shape[0], w.shape[0], *x.shape[2:])
    if y.numel():
        data = x.data_ptr(), y.data_ptr(), _scale(w), values.data_ptr()
        check(_library().subspace_rows_forward(_product_of(x, w), *data))
    return y


def backward(gy: Tensor, x: Tensor, w: Weight, geometry: Geometry, needs: Needs) -> Gradients:
    """The gradients in float32, that to the scale of one element."""
    gy, x, values = gy.float().contiguous(), x.float().contiguous(), w.values.float().contiguous()
    gx = torch.empty_like(x) if needs.x else None
    gscale = x.new_zeros(1) if needs.scale and w.scale is not None else None
    gvalues = torch.zeros_like(values) if needs.values else None
    if gy.numel():
        data = pointers(gy, x, gx, gscale, gvalues)
        check(_library().subspace_rows_backward(_product_of(x, w), *data, _scale(w), values.data_ptr()))
    return Gradients(gx, gscale, gvalues)


def _product_of(x: Tensor, w: Weight) -> _Product:
    pixels = x.shape[2:].numel()
    arguments = *w.fans, w.transform, x.shape[0] * pixels, pixels, torch.get_num_threads()
    return cached_per_index(w.index, _product, *arguments)


def _product(index: Tensor, n_out: int, n_in: int, transform: str, rows: int, pixels: int, threads: int) -> _Product:
    bags = of_matrix(index, n_out, n_in)
    orders: Any = bags.row_starts, bags.column, bags.by_row, bags.column_starts, bags.row_by_column, bags.by_column
    sizes = rows, pixels, n_out, n_in, len(index), TRANSFORMS[transform], threads
    product = _Product(*sizes, *pointers(*orders))
    product.bags = bags
    return product


def _scale(w: Weight) -> float:
    return 0.0 if w.scale is None else w.scale.item()
