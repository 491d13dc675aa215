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
        if ADD:
            before = _read(y, o, row, count, n_out)  # long before it is wanted
        start, end = _ends(starts, first, n_out, BLOCK, DEPTH)
        total = tl.zeros((BLOCK, TILE), tl.float32)
        for j in range(0, tl.max(end - start), DEPTH):
            at = _nonzeros(start, j, BLOCK, DEPTH)
            column = tl.load(columns + at, mask=at < end, other=-1)
            value = tl.load(values + at, mask=at < end, other=0.0).to(tl.float32)
            product = value[:, None] * _gather(across, column, TILE)
            total += tl.sum(product.reshape(DEPTH, BLOCK, TILE), 0)
        total = tl.trans(total)
        if ADD:
            total += before.to(tl.float32)
        _write(y, total, o, row, count, n_out)


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
        if NEED_X and ADD:
            before = _read(gx, i, row, count, n_in)
        if NEED_VALUES:
            inputs = tl.trans(_read(x, i, row, count, n_in))[None, :, :]
        start, end = _ends(starts, first, n_in, BLOCK, DEPTH)
        total = tl.zeros((BLOCK, TILE), tl.float32)
        for j in range(0, tl.max(end - start), DEPTH):
            at = _nonzeros(start, j, BLOCK, DEPTH)
            output = tl.load(outputs + at, mask=at < end, other=-1)
            if NEED_X:
                place = tl.load(places + at, mask=at < end, other=0)
                value = tl.load(values + place, mask=at < end, other=0.0).to(tl.float32)
            read = _gather(across, output, TILE)
            if NEED_X:
                total += tl.sum((value[:, None] * read).reshape(DEPTH, BLOCK, TILE), 0)
            if NEED_VALUES:
                product = inputs.to(tl.float32) * read.reshape(DEPTH, BLOCK, TILE)
                product = tl.sum(product.reshape(DEPTH * BLOCK, TILE), 1)
                if ATOMIC:
                    tl.atomic_add(gvalues + at, product, mask=at < end, sem="relaxed")
                else:
                    product += tl.load(gvalues + at, mask=at < end, other=0.0)
                    tl.store(gvalues + at, product, mask=at < end)
        if NEED_X:
            total = tl.trans(total)
            if ADD:
                total += before.to(tl.float32)
            _write(gx, total, i, row, count, n_in)


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
def _gather(across, places, TILE: tl.constexpr):
    """across[places], zero for those below 0: (DEPTH BLOCK, TILE)."""
    at = places[:, None]
    return tl.load(across + at * TILE + tl.arange(0, TILE)[None, :], mask=at >= 0, other=0.0).to(tl.float32)


@triton.jit
def _read(x, i, row, count, n):
    """x[row, i], zero outside."""
    return tl.load(x + row[:, None] * n + i[None, :], mask=(row < count)[:, None] & (i < n)[None, :], other=0.0)


@triton.jit
def _write(y, tile, i, row, count, n):
    """y[row, i] = tile, but for what is outside."""
    at, mask = y + row[:, None] * n + i[None, :], (row < count)[:, None] & (i < n)[None, :]
    tl.store(at, tile.to(y.dtype.element_ty), mask=mask)
