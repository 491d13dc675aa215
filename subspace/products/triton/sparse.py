"""The sparse part S of a product, added to y or to a gradient.

One row of x at a time, a nonzero would read 2 bytes from anywhere. So x is first laid across, (n, rows): then a nonzero
reads TILE neighbours, and the programs of one tile, which run at the same time, read them from the caches.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from subspace.products.sparse_index import cached_per_index
from subspace.products.triton.orders import orders
from subspace.products.weight import Weight

TILE, BLOCK, DEPTH = 64, 64, 2  # rows, outputs, and nonzeros of each at a time: the fastest on an H200, of some tried


def forward(x: Tensor, w: Weight, y: Tensor, add: bool) -> None:
    """y = x S^T, or if told to add += : (rows, n_in) -> (rows, n_out), contiguous."""
    n_out, n_in = w.fans
    found, across = cached_per_index(w.index, orders, n_out, n_in), _lay_across(x)
    _multiply[(triton.cdiv(n_out, BLOCK) * triton.cdiv(len(x), TILE),)](
        across, y, w.values, found.by_row, found.columns, found.row_starts, len(x), n_out, across.shape[1],
        TILE=TILE, BLOCK=BLOCK, DEPTH=DEPTH, ADD=add,
    )  # fmt: skip


def backward(gy: Tensor, x: Tensor, w: Weight, gx: Tensor | None, add: bool, needs_values: bool) -> Tensor | None:
    """gx = gy S, or if told to add +=, where given; returns gvalues in float32, if needed.

    Its sums over the rows are added up as they come, or, where torch is told to be deterministic, in order.
    """
    n_out, n_in = w.fans
    found, across = cached_per_index(w.index, orders, n_out, n_in), _lay_across(gy)
    tiles, k, atomic = triton.cdiv(len(x), TILE), len(w.values), not torch.are_deterministic_algorithms_enabled()
    sums = x.new_zeros(1 if atomic else tiles, k, dtype=torch.float32)
    _multiply_back[(triton.cdiv(n_in, BLOCK) * tiles,)](
        across, x, x if gx is None else gx, w.values, sums, found.by_column, found.row_by_column, found.column_starts,
        len(x), n_in, across.shape[1], k, TILE=TILE, BLOCK=BLOCK, DEPTH=DEPTH, ADD=add,
        NEED_X=gx is not None, NEED_VALUES=needs_values, ATOMIC=atomic,
    )  # fmt: skip
    return torch.empty_like(sums[0]).index_copy_(0, found.by_column.long(), sums.sum(0)) if needs_values else None


def _lay_across(x: Tensor) -> Tensor:
    """(rows, n) -> (n, rows), with rows of zeros behind, to whole tiles."""
    tiles, n = triton.cdiv(len(x), TILE), x.shape[1]
    across = x.new_empty(n, tiles * TILE)
    _copy_across[(tiles, triton.cdiv(n, TILE))](x, across, len(x), n, across.shape[1], TILE=TILE)
    return across


@triton.jit
def _copy_across(x, across, count, n, wide, TILE: tl.constexpr):
    """across[i, r] = x[r, i], zero for r from count to wide."""
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    i = tl.program_id(1) * TILE + tl.arange(0, TILE)
    at = across + i.to(tl.int64)[:, None] * wide + row[None, :]
    tl.store(at, tl.trans(_read(x, i, row, count, n)), mask=(i < n)[:, None])


@triton.jit
def _multiply(
    across, y, values, slots, columns, starts, count, n_out, wide,
    TILE: tl.constexpr, BLOCK: tl.constexpr, DEPTH: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """y[r, o] = sum of values[slots[j]] across[columns[j], r] over the nonzeros j of o, or with ADD += ."""
    tile, _, first = share(n_out, 1, BLOCK)
    row, o = tile * TILE + tl.arange(0, TILE), first + tl.arange(0, BLOCK)
    start, end = ends(starts, first, n_out, BLOCK, DEPTH)
    total = tl.zeros((BLOCK, TILE), tl.float32)
    for j in range(0, tl.max(end - start), DEPTH):
        at = nonzeros(start, j, BLOCK, DEPTH)
        column = tl.load(columns + at, mask=at < end, other=-1)
        slot = tl.load(slots + at, mask=at < end, other=0)
        value = tl.load(values + slot, mask=at < end, other=0.0).to(tl.float32)
        product = value[:, None] * _gather(across, column, row, wide)
        total += tl.sum(product.reshape(DEPTH, BLOCK, TILE), 0)
    _write(y, tl.trans(total), o, row, count, n_out, ADD)


@triton.jit
def _multiply_back(
    across, x, gx, values, gvalues, slots, outputs, starts, count, n_in, wide, k,
    TILE: tl.constexpr, BLOCK: tl.constexpr, DEPTH: tl.constexpr, ADD: tl.constexpr,
    NEED_X: tl.constexpr, NEED_VALUES: tl.constexpr, ATOMIC: tl.constexpr,
):  # fmt: skip
    """gx[r, i] = sum of values[slots[j]] across[outputs[j], r] over the nonzeros j of i, or with ADD +=, if NEED_X.

    And, if NEED_VALUES, gvalues[j] += <x[:, i], across[outputs[j]]>; if not ATOMIC, each tile's to a row of its own.
    """
    tile, _, first = share(n_in, 1, BLOCK)
    row, i = tile * TILE + tl.arange(0, TILE), first + tl.arange(0, BLOCK)
    if NEED_VALUES:
        inputs = tl.trans(_read(x, i, row, count, n_in)).to(tl.float32)[None, :, :]
        if not ATOMIC:
            gvalues += tile.to(tl.int64) * k
    start, end = ends(starts, first, n_in, BLOCK, DEPTH)
    total = tl.zeros((BLOCK, TILE), tl.float32)
    for j in range(0, tl.max(end - start), DEPTH):
        at = nonzeros(start, j, BLOCK, DEPTH)
        output = tl.load(outputs + at, mask=at < end, other=-1)
        if NEED_X:
            slot = tl.load(slots + at, mask=at < end, other=0)
            value = tl.load(values + slot, mask=at < end, other=0.0).to(tl.float32)
        read = _gather(across, output, row, wide)
        if NEED_X:
            total += tl.sum((value[:, None] * read).reshape(DEPTH, BLOCK, TILE), 0)
        if NEED_VALUES:
            product = inputs * read.reshape(DEPTH, BLOCK, TILE)
            product = tl.sum(product.reshape(DEPTH * BLOCK, TILE), 1)
            if ATOMIC:
                tl.atomic_add(gvalues + at, product, mask=at < end, sem="relaxed")
            else:
                tl.store(gvalues + at, product, mask=at < end)
    if NEED_X:
        _write(gx, tl.trans(total), i, row, count, n_in, ADD)


@triton.jit
def share(n, phases, BLOCK: tl.constexpr):
    """The tile, the phase, and the first of n that this program is for; the programs of a tile run at the same time.

    (Of one axis, as a GPU takes but 65535 programs on any other.)
    """
    program, blocks = tl.program_id(0), tl.cdiv(n, BLOCK)
    return program // (blocks * phases), program // blocks % phases, program % blocks * BLOCK


@triton.jit
def ends(starts, first, n, BLOCK: tl.constexpr, DEPTH: tl.constexpr):
    """Where the nonzeros of each of a block begin and end, DEPTH times over in a line, as `nonzeros` are."""
    o = first + tl.arange(0, DEPTH * BLOCK) % BLOCK
    return tl.load(starts + o, mask=o < n, other=0), tl.load(starts + o + 1, mask=o < n, other=0)


@triton.jit
def nonzeros(start, j, BLOCK: tl.constexpr, DEPTH: tl.constexpr):
    """The nonzeros j ... j + DEPTH of each of a block, the first of all, then the second, ...: in a line, read at once.

    (Of tensors of several axes without neighbours in memory, the compiler takes any axis for the fastest.)
    """
    return start + j + tl.arange(0, DEPTH * BLOCK) // BLOCK


@triton.jit
def _gather(across, places, row, wide):
    """across[places, row] in float32, zero for places below 0."""
    at = places[:, None]
    return tl.load(across + at.to(tl.int64) * wide + row[None, :], mask=at >= 0, other=0.0).to(tl.float32)


@triton.jit
def _read(x, i, row, count, n):
    """x[row, i], zero outside."""
    at = x + row.to(tl.int64)[:, None] * n + i[None, :]
    return tl.load(at, mask=(row < count)[:, None] & (i < n)[None, :], other=0.0)


@triton.jit
def _write(y, tile, i, row, count, n, ADD: tl.constexpr):
    """y[row, i] = tile, or with ADD +=, but for what is outside."""
    at, mask = y + row.to(tl.int64)[:, None] * n + i[None, :], (row < count)[:, None] & (i < n)[None, :]
    if ADD:
        tile += tl.load(at, mask=mask, other=0.0).to(tl.float32)
    tl.store(at, tile.to(y.dtype.element_ty), mask=mask)
