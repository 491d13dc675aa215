"""The sparse part S of a product for a tile of rows, as parts of a kernel.

One row of x at a time, a nonzero would read 2 bytes from anywhere. So the rows are first laid side by side in a scratch
of the program's own, (n, TILE), which stays in the caches: then a nonzero reads TILE neighbours. Rows from `count` on are
neither read nor written.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def transpose(x, scratch, count, n, TILE: tl.constexpr, COPY: tl.constexpr):
    """scratch[i, r] = x[r, i], zero for the rows from count on."""
    row = tl.arange(0, TILE)
    for first in range(0, n, COPY):
        i = first + tl.arange(0, COPY)
        tile = _read(x, i, row, count, n)
        tl.store(scratch + i[:, None] * TILE + row[None, :], tl.trans(tile), mask=(i < n)[:, None])


@triton.jit
def multiply(
    across, y, values, columns, starts, count, n_out,
    TILE: tl.constexpr, BLOCK: tl.constexpr, DEPTH: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """y[r, o] = sum of values[j] across[columns[j], r] over the nonzeros j of o, or with ADD += ."""
    row = tl.arange(0, TILE)
    for first in range(0, n_out, BLOCK):
        o = first + tl.arange(0, BLOCK)
        start = tl.load(starts + o, mask=o < n_out, other=0)
        end = tl.load(starts + o + 1, mask=o < n_out, other=0)
        total = tl.zeros((BLOCK, TILE), tl.float32)
        for j in range(0, tl.max(end - start), DEPTH):
            for d in tl.static_range(DEPTH):  # so many reads are under way at a time
                at = start + (j + d)
                column = tl.load(columns + at, mask=at < end, other=-1)[:, None]
                value = tl.load(values + at, mask=at < end, other=0.0).to(tl.float32)
                read = tl.load(across + column * TILE + row[None, :], mask=column >= 0, other=0.0)
                total += value[:, None] * read.to(tl.float32)
        _write(y, tl.trans(total), o, row, count, n_out, ADD)


@triton.jit
def multiply_back(
    across, x, gx, values, gvalues, places, outputs, starts, count, n_in,
    TILE: tl.constexpr, BLOCK: tl.constexpr, DEPTH: tl.constexpr, ADD: tl.constexpr,
    NEED_X: tl.constexpr, NEED_VALUES: tl.constexpr, ATOMIC: tl.constexpr,
):  # fmt: skip
    """gx[r, i] = sum of values[places[j]] across[outputs[j], r] over the nonzeros j of i, or with ADD +=, if NEED_X.

    And, if NEED_VALUES, gvalues[j] += <x[:, i], across[outputs[j]]>.
    """
    row = tl.arange(0, TILE)
    for first in range(0, n_in, BLOCK):
        i = first + tl.arange(0, BLOCK)
        start = tl.load(starts + i, mask=i < n_in, other=0)
        end = tl.load(starts + i + 1, mask=i < n_in, other=0)
        if NEED_VALUES:
            inputs = tl.trans(_read(x, i, row, count, n_in)).to(tl.float32)
        total = tl.zeros((BLOCK, TILE), tl.float32)
        for j in range(0, tl.max(end - start), DEPTH):
            for d in tl.static_range(DEPTH):
                at = start + (j + d)
                output = tl.load(outputs + at, mask=at < end, other=-1)[:, None]
                read = tl.load(across + output * TILE + row[None, :], mask=output >= 0, other=0.0).to(tl.float32)
                if NEED_X:
                    place = tl.load(places + at, mask=at < end, other=0)
                    value = tl.load(values + place, mask=at < end, other=0.0).to(tl.float32)
                    total += value[:, None] * read
                if NEED_VALUES:
                    product = tl.sum(inputs * read, 1)
                    if ATOMIC:
                        tl.atomic_add(gvalues + at, product, mask=at < end, sem="relaxed")
                    else:
                        before = tl.load(gvalues + at, mask=at < end, other=0.0)
                        tl.store(gvalues + at, before + product, mask=at < end)
        if NEED_X:
            _write(gx, tl.trans(total), i, row, count, n_in, ADD)


@triton.jit
def _read(x, i, row, count, n):
    """x[row, i], zero outside."""
    return tl.load(x + row[:, None] * n + i[None, :], mask=(row < count)[:, None] & (i < n)[None, :], other=0.0)


@triton.jit
def _write(y, tile, i, row, count, n, ADD: tl.constexpr):
    """y[row, i] = tile, or with ADD += , but for what is outside."""
    at, mask = y + row[:, None] * n + i[None, :], (row < count)[:, None] & (i < n)[None, :]
    if ADD:
        tile += tl.load(at, mask=mask, other=0.0).to(tl.float32)
    tl.store(at, tile.to(y.dtype.element_ty), mask=mask)
