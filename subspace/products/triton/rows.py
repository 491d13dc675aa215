"""y = x w^T for w = scale T diag(signs) + S, and its gradients, each in one kernel that never leaves the chip between.

Every program takes tiles of rows in turn: the transform of a few rows at a time in registers, then S on the whole tile,
through a scratch that stays in the caches. Read and written of the device's memory are x and y alone, once.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from subspace.products.triton import sparse, transforms
from subspace.products.sparse_index import cached_per_index
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

ZERO, DCT, HADAMARD = (tl.constexpr(number) for number in range(3))
TRANSFORMS = {"zero": 0, "dct": 1, "hadamard": 2}


@triton.jit
def _offset(number, size):
    """number * size, which may be more than 32 bits hold."""
    return (tl.full((), 0, tl.int64) + number) * size


@triton.jit
def _forward(
    x, y, scale, signs, columns, rows, twiddles, turn,
    values, column, row_starts, scratch, count, n_in, n_out,
    TRANSFORM: tl.constexpr, Q1: tl.constexpr, Q2: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr,
    PART: tl.constexpr, PART2: tl.constexpr, BLOCK: tl.constexpr, DEPTH: tl.constexpr, COPY: tl.constexpr,
    SIGNED: tl.constexpr, SPARSE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    across = scratch + _offset(tl.program_id(0), n_in * TILE)
    for tile in range(tl.program_id(0), tl.cdiv(count, TILE), tl.num_programs(0)):
        x_tile, y_tile = x + _offset(tile, TILE * n_in), y + _offset(tile, TILE * n_out)
        here = tl.minimum(TILE, count - tile * TILE)
        if TRANSFORM != ZERO:
            alpha = tl.load(scale).to(tl.float32)
            norm = tl.rsqrt(tl.maximum(n_in, n_out).to(tl.float32))
            for r in range(0, TILE, ROWS):
                if TRANSFORM == DCT:
                    transforms.dct(
                        x_tile + r * n_in, y_tile + r * n_out, signs, alpha, columns, rows, twiddles, turn,
                        here - r, n_in, n_out, Q1, Q2, ROWS, PART, PART2, SIGNED, PRECISION,
                    )  # fmt: skip
                else:
                    transforms.hadamard(
                        x_tile + r * n_in, y_tile + r * n_out, signs, signs, alpha * norm, columns, rows,
                        here - r, n_in, n_out, x, Q1, Q2, ROWS, PART, PART2, SIGNED, False, PRECISION, True, False,
                    )  # fmt: skip
        if SPARSE:
            sparse.transpose(x_tile, across, here, n_in, TILE, COPY)
            tl.debug_barrier()
            sparse.multiply(
                across, y_tile, values, column, row_starts, here, n_out, TILE, BLOCK, DEPTH, TRANSFORM != ZERO
            )  # fmt: skip
            tl.debug_barrier()  # before the scratch is written again


@triton.jit
def _backward(
    gy, x, gx, gscale, gvalues, scale, signs, columns, rows, twiddles, turn,
    values, by_column, row_by_column, column_starts, scratch, count, n_in, n_out, k,
    TRANSFORM: tl.constexpr, Q1: tl.constexpr, Q2: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr,
    PART: tl.constexpr, PART2: tl.constexpr, BLOCK: tl.constexpr, DEPTH: tl.constexpr, COPY: tl.constexpr,
    SIGNED: tl.constexpr, SPARSE: tl.constexpr, PRECISION: tl.constexpr,
    NEED_X: tl.constexpr, NEED_SCALE: tl.constexpr, NEED_VALUES: tl.constexpr, ATOMIC: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    across = scratch + _offset(program, n_out * TILE)
    if not ATOMIC:
        gvalues += _offset(program, k)
    total = 0.0
    for tile in range(program, tl.cdiv(count, TILE), tl.num_programs(0)):
        x_tile, gx_tile = x + _offset(tile, TILE * n_in), gx + _offset(tile, TILE * n_in)
        gy_tile = gy + _offset(tile, TILE * n_out)
        here = tl.minimum(TILE, count - tile * TILE)
        if TRANSFORM != ZERO and (NEED_X or NEED_SCALE):
            alpha = tl.load(scale).to(tl.float32)
            norm = tl.rsqrt(tl.maximum(n_in, n_out).to(tl.float32))
            for r in range(0, TILE, ROWS):
                if TRANSFORM == DCT:
                    total += transforms.idct(
                        gy_tile + r * n_out, gx_tile + r * n_in, signs, alpha, columns, rows, twiddles, turn, here - r,
                        n_out, n_in, x_tile + r * n_in, Q1, Q2, ROWS, PART2, SIGNED, PRECISION, NEED_X, NEED_SCALE,
                    )  # fmt: skip
                else:
                    total += norm * transforms.hadamard(
                        gy_tile + r * n_out, gx_tile + r * n_in, signs, signs, alpha * norm, columns, rows, here - r,
                        n_out, n_in, x_tile + r * n_in, Q1, Q2, ROWS, PART, PART2, False, SIGNED, PRECISION,
                        NEED_X, NEED_SCALE,
                    )  # fmt: skip
        if SPARSE and (NEED_X or NEED_VALUES):
            sparse.transpose(gy_tile, across, here, n_out, TILE, COPY)
            tl.debug_barrier()
            sparse.multiply_back(
                across, x_tile, gx_tile, values, gvalues, by_column, row_by_column, column_starts, here, n_in,
                TILE, BLOCK, DEPTH, TRANSFORM != ZERO, NEED_X, NEED_VALUES, ATOMIC,
            )  # fmt: skip
            tl.debug_barrier()
    if NEED_SCALE:
        tl.store(gscale + program, total)




def forward(x: Tensor, w: Weight, s: Settings | None = None) -> Tensor:
    """x w^T: (rows, n_in) -> (rows, n_out)."""
    n_out, n_in = fans(w)
    x, y = x.contiguous(), x.new_empty(len(x), n_out)
    if x.numel() == 0 or n_out == 0:
        return y
    if w.scale is None and len(w.values) == 0:
        return y.zero_()
    q = max(n_out, n_in)
    s = s or settings(q, w.transform, x.element_size(), False)
    programs = _programs(x, s)
    order = cached_per_index(w.index, orders, n_out, n_in)
    _forward[(programs,)](
        x, y, *_dense(x, w, q), w.values, *order[:2], _scratch(x, w, s, programs, n_in), len(x), n_in, n_out,
        **_constants(x, w, q, s), num_warps=s.warps, num_stages=1,
    )  # fmt: skip
    return y


def backward(gy: Tensor, x: Tensor, w: Weight, needs: tuple[bool, bool, bool], s: Settings | None = None):
    """(gx, gscale of one element, gvalues), float32 but for gx, None where not needed."""
    n_out, n_in = fans(w)
    gy, x = gy.contiguous(), x.contiguous()
    gx = torch.empty_like(x) if needs[0] else None
    q = max(n_out, n_in)
    s = s or settings(q, w.transform, x.element_size(), True)
    programs, k = _programs(x, s), len(w.values)
    atomic = not torch.are_deterministic_algorithms_enabled()
    gscale = x.new_zeros(programs, dtype=torch.float32)
    gvalues = x.new_zeros(1 if atomic else programs, k, dtype=torch.float32)
    if w.scale is None and k == 0:
        return gx.zero_() if needs[0] else None, None, gvalues[0] if needs[2] else None
    order = cached_per_index(w.index, orders, n_out, n_in)
    _backward[(programs,)](
        gy, x, x if gx is None else gx, gscale, gvalues, *_dense(x, w, q), w.values, *order[2:],
        _scratch(x, w, s, programs, n_out), len(x), n_in, n_out, k,
        **_constants(x, w, q, s),
        NEED_X=needs[0], NEED_SCALE=needs[1] and w.scale is not None, NEED_VALUES=needs[2], ATOMIC=atomic,
        num_warps=s.warps, num_stages=1,
    )  # fmt: skip
    found = torch.empty_like(gvalues[0])
    found[order.by_column.long()] = gvalues.sum(0)
    return gx, gscale.sum(0, keepdim=True) if needs[1] and w.scale is not None else None, found if needs[2] else None


def fans(w: Weight) -> tuple[int, int]:
    return w.shape[0], math.prod(w.shape[1:])


def _programs(x: Tensor, s: Settings) -> int:
    return min(-(-len(x) // s.tile), processors(x.device) * s.programs)


@functools.cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; of the interpreter few."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def _dense(x: Tensor, w: Weight, q: int):
    """scale, signs and the tables; x in the place of what there is not."""
    if w.scale is None:
        return (x,) * 6
    signs = x
    if w.signs is not None:
        signs = _signs(w.signs, q, w.transform)
    return (w.scale, signs, *tables(w.transform, q, x.dtype, x.device))


def _signs(signs: Tensor, q: int, transform: str) -> Tensor:
    """One for each place of a transform, in the order in which it takes them."""
    padded = torch.ones(q, dtype=torch.int8, device=signs.device)
    padded[: len(signs)] = signs
    return torch.cat([padded[::2], padded[1::2].flip(0)]) if transform == "dct" else padded


def _scratch(x: Tensor, w: Weight, s: Settings, programs: int, n: int) -> Tensor:
    return x.new_empty(programs * n * s.tile if len(w.values) else 1)


def _constants(x: Tensor, w: Weight, q: int, s: Settings):
    q1, q2 = split(q) if w.scale is not None else (16, 16)
    return {
        "TRANSFORM": TRANSFORMS[w.transform], "Q1": q1, "Q2": q2, "TILE": s.tile, "ROWS": s.rows, "PART": s.part,
        "PART2": s.part2, "BLOCK": s.block, "DEPTH": s.depth, "COPY": s.copy, "SIGNED": w.signs is not None,
        "SPARSE": len(w.values) > 0, "PRECISION": "tf32x3" if x.dtype == torch.float32 else "ieee",
    }  # fmt: skip
