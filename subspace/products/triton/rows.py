"""y = x w^T for w = scale T diag(signs) + S, and its gradients: T's part in one kernel, S's in another that adds to it."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from subspace.products.sparse_index import cached_per_index
from subspace.products.triton import sparse, transforms
from subspace.products.triton.order import orders
from subspace.products.triton.settings import Settings, settings
from subspace.products.triton.tables import split, tables


class Weight(NamedTuple):  # until the products have one
    scale: Tensor | None
    values: Tensor
    index: Tensor
    shape: tuple[int, ...]
    transform: str
    signs: Tensor | None = None


@triton.jit
def _transform(
    x, y, scale, signs, columns, rows, twiddles, turn, count, n_in, n_out,
    HADAMARD: tl.constexpr, Q1: tl.constexpr, Q2: tl.constexpr, ROWS: tl.constexpr,
    PART: tl.constexpr, PART2: tl.constexpr, SIGNED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y = scale T (signs x)."""
    alpha = tl.load(scale).to(tl.float32)
    if HADAMARD:
        alpha *= tl.rsqrt(tl.maximum(n_in, n_out).to(tl.float32))
    for part in range(tl.program_id(0), tl.cdiv(count, ROWS), tl.num_programs(0)):
        here, x_part, y_part = count - part * ROWS, x + _offset(part, ROWS * n_in), y + _offset(part, ROWS * n_out)
        if HADAMARD:
            transforms.hadamard(
                x_part, y_part, signs, signs, alpha, columns, rows, here, n_in, n_out, x,
                Q1, Q2, ROWS, PART, PART2, SIGNED, False, PRECISION, True, False,
            )  # fmt: skip
        else:
            transforms.dct(
                x_part, y_part, signs, alpha, columns, rows, twiddles, turn, here, n_in, n_out,
                Q1, Q2, ROWS, PART, PART2, SIGNED, PRECISION,
            )  # fmt: skip


@triton.jit
def _transform_back(
    gy, x, gx, gscale, scale, signs, columns, rows, twiddles, turn, count, n_in, n_out,
    HADAMARD: tl.constexpr, Q1: tl.constexpr, Q2: tl.constexpr, ROWS: tl.constexpr,
    PART: tl.constexpr, PART2: tl.constexpr, SIGNED: tl.constexpr, PRECISION: tl.constexpr,
    NEED_X: tl.constexpr, NEED_SCALE: tl.constexpr,
):  # fmt: skip
    """gx = scale signs T^T gy, if NEED_X; gscale, a sum for each program, <x, signs T^T gy>, if NEED_SCALE."""
    alpha, norm = tl.load(scale).to(tl.float32), 1.0
    if HADAMARD:
        norm = tl.rsqrt(tl.maximum(n_in, n_out).to(tl.float32))
    total = 0.0
    for part in range(tl.program_id(0), tl.cdiv(count, ROWS), tl.num_programs(0)):
        here, gy_part = count - part * ROWS, gy + _offset(part, ROWS * n_out)
        x_part, gx_part = x + _offset(part, ROWS * n_in), gx + _offset(part, ROWS * n_in)
        if HADAMARD:
            total += transforms.hadamard(
                gy_part, gx_part, signs, signs, alpha * norm, columns, rows, here, n_out, n_in, x_part,
                Q1, Q2, ROWS, PART, PART2, False, SIGNED, PRECISION, NEED_X, NEED_SCALE,
            )  # fmt: skip
        else:
            total += transforms.idct(
                gy_part, gx_part, signs, alpha, columns, rows, twiddles, turn, here, n_out, n_in, x_part,
                Q1, Q2, ROWS, PART2, SIGNED, PRECISION, NEED_X, NEED_SCALE,
            )  # fmt: skip
    if NEED_SCALE:
        tl.store(gscale + tl.program_id(0), total * norm)


@triton.jit
def _offset(number, size):
    """number * size, which may be more than 32 bits hold."""
    return (tl.full((), 0, tl.int64) + number) * size


def forward(x: Tensor, w: Weight, s: Settings | None = None) -> Tensor:
    """x w^T: (rows, n_in) -> (rows, n_out)."""
    n_out, n_in = fans(w)
    q, x = max(n_out, n_in), x.contiguous()
    s = s or settings(q, w.transform, x.dtype.itemsize, False)
    y = x.new_empty(len(x), n_out)
    if w.scale is not None:
        programs = _programs(x, s)
        _transform[(programs,)](x, y, *_dense(x, w, q), len(x), n_in, n_out, **_constants(x, w, q, s))
    elif len(w.values) == 0:
        return y.zero_()
    if len(w.values):
        columns, starts, *_ = cached_per_index(w.index, orders, n_out, n_in)
        across, tiles = _across(x, s)
        sparse.multiply[(-(-n_out // s.block), tiles)](
            across, y, w.values, columns, starts, len(x), n_out, across.shape[1],
            TILE=s.tile, BLOCK=s.block, DEPTH=s.depth, ADD=w.scale is not None, num_warps=4,
        )  # fmt: skip
    return y


def backward(gy: Tensor, x: Tensor, w: Weight, needs: Any, s: Settings | None = None) -> Any:
    """(gx, gscale of one element, gvalues), float32 but for gx, None where not needed."""
    n_out, n_in = fans(w)
    need_x, need_scale, need_values = needs[0], needs[1] and w.scale is not None, needs[2]
    q, k, gy, x = max(n_out, n_in), len(w.values), gy.contiguous(), x.contiguous()
    s = s or settings(q, w.transform, x.dtype.itemsize, True)
    gx, gscale, gvalues = torch.empty_like(x) if need_x else None, None, None
    if w.scale is not None and (need_x or need_scale):
        programs = _programs(x, s)
        gscale = x.new_empty(programs, dtype=torch.float32)
        _transform_back[(programs,)](
            gy, x, x if gx is None else gx, gscale, *_dense(x, w, q), len(x), n_in, n_out, **_constants(x, w, q, s),
            NEED_X=need_x, NEED_SCALE=need_scale,
        )  # fmt: skip
    if k and (need_x or need_values):
        *_, by_column, row_by_column, starts = cached_per_index(w.index, orders, n_out, n_in)
        across, tiles = _across(gy, s)
        atomic = not torch.are_deterministic_algorithms_enabled()
        sums = x.new_zeros(1 if atomic else tiles, k, dtype=torch.float32)
        sparse.multiply_back[(-(-n_in // s.block), tiles)](
            across, x, x if gx is None else gx, w.values, sums, by_column, row_by_column, starts,
            len(x), n_in, across.shape[1], k, TILE=s.tile, BLOCK=s.block, DEPTH=s.depth, ADD=w.scale is not None,
            NEED_X=need_x, NEED_VALUES=need_values, ATOMIC=atomic, num_warps=4,
        )  # fmt: skip
        if need_values:
            gvalues = torch.empty_like(sums[0]).index_copy_(0, by_column.long(), sums.sum(0))
    elif need_values:
        gvalues = x.new_zeros(k, dtype=torch.float32)
    if gx is not None and w.scale is None and k == 0:
        gx.zero_()
    return gx, gscale.sum(0, keepdim=True) if need_scale else None, gvalues


def fans(w: Weight) -> tuple[int, int]:
    return w.shape[0], math.prod(w.shape[1:])


def _across(x: Tensor, s: Settings) -> tuple[Tensor, int]:
    """x across, (n, rows) with the rows filled up to whole tiles, and the number of these."""
    tiles, n = -(-len(x) // s.tile), x.shape[1]
    across = x.new_empty(n, tiles * s.tile)
    sparse.lay_across[(tiles, -(-n // s.copy))](
        x, across, len(x), n, across.shape[1], TILE=s.tile, BLOCK=s.copy, num_warps=4
    )
    return across, tiles


def _programs(x: Tensor, s: Settings) -> int:
    return min(-(-len(x) // s.rows), processors(x.device) * s.programs)


@functools.cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; of the interpreter few."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def _dense(x: Tensor, w: Weight, q: int) -> tuple[Tensor, ...]:
    """scale, signs and the tables; scale in the place of signs where there are none."""
    signs = w.scale if w.signs is None else _in_order(w.signs, q, w.transform)
    return (w.scale, signs, *tables(w.transform, q, x.dtype, x.device))


def _in_order(signs: Tensor, q: int, transform: str) -> Tensor:
    """One for each place of a transform, in the order in which it takes them."""
    padded = torch.ones(q, dtype=torch.int8, device=signs.device)
    padded[: len(signs)] = signs
    return torch.cat([padded[::2], padded[1::2].flip(0)]) if transform == "dct" else padded


def _constants(x: Tensor, w: Weight, q: int, s: Settings) -> dict[str, Any]:
    q1, q2 = split(q)
    return {
        "HADAMARD": w.transform == "hadamard", "Q1": q1, "Q2": q2, "ROWS": s.rows, "PART": s.part, "PART2": s.part2,
        "SIGNED": w.signs is not None, "PRECISION": "tf32x3" if x.dtype == torch.float32 else "ieee",
        "num_warps": s.warps, "num_stages": 1,
    }  # fmt: skip
