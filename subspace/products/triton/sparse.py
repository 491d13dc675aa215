"""The sparse part S of a product, added to y or to a gradient.

One row of x at a time, a nonzero would read 2 bytes from anywhere. So x is first laid across, (n, rows): then a nonzero
reads TILE neighbours, and the programs of one tile, which run at the same time, read them from the caches.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def lay_across(x, across, count, n, wide, TILE: tl.constexpr, BLOCK: tl.constexpr):
    """across[i, r] = x[r, i], zero for r from count to wide."""
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    at = across + i.to(tl.int64)[:, None] * wide + row[None, :]
    tl.store(at, tl.trans(_read(x, i, row, count, n)), mask=(i < n)[:, None])


@triton.jit
def multiply(
    across, y, values, columns, starts, count, n_out, wide,
    TILE: tl.constexpr, BLOCK: tl.constexpr, DEPTH: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """y[r, o] = sum of values[j] across[columns[j], r] over the nonzeros j of o, or with ADD += ."""
    first, row = tl.program_id(0) * BLOCK, tl.program_id(1) * TILE + tl.arange(0, TILE)
    o = first + tl.arange(0, BLOCK)
    start, end = _ends(starts, first, n_out, BLOCK, DEPTH)
    total = tl.zeros((BLOCK, TILE), tl.float32)
    for j in range(0, tl.max(end - start), DEPTH):
        at = _nonzeros(start, j, BLOCK, DEPTH)
        column = tl.load(columns + at, mask=at < end, other=-1)
        value = tl.load(values + at, mask=at < end, other=0.0).to(tl.float32)
        product = value[:, None] * _gather(across, column, row, wide)
        total += tl.sum(product.reshape(DEPTH, BLOCK, TILE), 0)
    _write(y, tl.trans(total), o, row, count, n_out, ADD)


@triton.jit
def multiply_back(
    across, x, gx, values, gvalues, places, outputs, starts, count, n_in, wide, k,
    TILE: tl.constexpr, BLOCK: tl.constexpr, DEPTH: tl.constexpr, ADD: tl.constexpr,
    NEED_X: tl.constexpr, NEED_VALUES: tl.constexpr, ATOMIC: tl.constexpr,
):  # fmt: skip
    """gx[r, i] = sum of values[places[j]] across[outputs[j], r] over the nonzeros j of i, or with ADD +=, if NEED_X.

    And, if NEED_VALUES, gvalues[j] += <x[:, i], across[outputs[j]]>; if not ATOMIC, each tile's to a row of its own.
    """
    first, row = tl.program_id(0) * BLOCK, tl.program_id(1) * TILE + tl.arange(0, TILE)
    i = first + tl.arange(0, BLOCK)
    if NEED_VALUES:
        inputs = tl.trans(_read(x, i, row, count, n_in)).to(tl.float32)[None, :, :]
        if not ATOMIC:
            gvalues += tl.program_id(1).to(tl.int64) * k
    start, end = _ends(starts, first, n_in, BLOCK, DEPTH)
    total = tl.zeros((BLOCK, TILE), tl.float32)
    for j in range(0, tl.max(end - start), DEPTH):
        at = _nonzeros(start, j, BLOCK, DEPTH)
        output = tl.load(outputs + at, mask=at < end, other=-1)
        if NEED_X:
            place = tl.load(places + at, mask=at < end, other=0)
            value = tl.load(values + place, mask=at < end, other=0.0).to(tl.float32)
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
def _ends(starts, first, n, BLOCK: tl.constexpr, DEPTH: tl.constexpr):
    """Where the nonzeros of each of a block begin and end, DEPTH times over in a line, as `_nonzeros` are."""
    o = first + tl.arange(0, DEPTH * BLOCK) % BLOCK
    return tl.load(starts + o, mask=o < n, other=0), tl.load(starts + o + 1, mask=o < n, other=0)


@triton.jit
def _nonzeros(start, j, BLOCK: tl.constexpr, DEPTH: tl.constexpr):
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
