"""The sparse part S of a product for a few rows, as parts of a kernel.

One row of x at a time, a nonzero would read 2 bytes from anywhere. So the rows' places are first laid side by side in a
scratch, (n, ROWS), of the program's own: then a nonzero reads ROWS neighbours. The outputs are taken in the order of
their number of nonzeros, so that those of one block have nearly as many.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def transpose(x, scratch, count, n, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """scratch[i, r] = x[r, i], zero for the rows from count on."""
    row = tl.arange(0, ROWS)
    for first in range(0, n, BLOCK):
        i = first + tl.arange(0, BLOCK)
        tile = tl.load(x + row[:, None] * n + i[None, :], mask=(row < count)[:, None] & (i < n)[None, :], other=0.0)
        tl.store(scratch + i[:, None] * ROWS + row[None, :], tl.trans(tile), mask=(i < n)[:, None])


@triton.jit
def add_transposed(scratch, y, count, n, ROWS: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr):
    """y[r, o] += scratch[o, r], or without ADD = ."""
    row = tl.arange(0, ROWS)
    for first in range(0, n, BLOCK):
        o = first + tl.arange(0, BLOCK)
        at, mask = y + row[:, None] * n + o[None, :], (row < count)[:, None] & (o < n)[None, :]
        tile = tl.trans(tl.load(scratch + o[:, None] * ROWS + row[None, :], mask=(o < n)[:, None], other=0.0))
        if ADD:
            tile = (tile.to(tl.float32) + tl.load(at, mask=mask, other=0.0).to(tl.float32)).to(y.dtype.element_ty)
        tl.store(at, tile, mask=mask)


@triton.jit
def multiply(
    inputs, outputs, values, columns, starts, order, n_out,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """outputs[o, r] = sum of values[j] inputs[columns[j], r] over the nonzeros j of o."""
    row = tl.arange(0, ROWS)
    for first in range(0, n_out, BLOCK):
        block = first + tl.arange(0, BLOCK)
        o = tl.load(order + block, mask=block < n_out, other=0)
        start = tl.load(starts + o)
        length = tl.where(block < n_out, tl.load(starts + o + 1) - start, 0)
        total = tl.zeros((BLOCK, ROWS), tl.float32)
        column = tl.load(columns + start, mask=length > 0, other=0)
        for j in range(0, tl.max(length)):
            there, here = j < length, column
            column = tl.load(columns + start + j + 1, mask=j + 1 < length, other=0)  # of the next, in time
            value = tl.load(values + start + j, mask=there, other=0.0).to(tl.float32)
            read = tl.load(inputs + here[:, None] * ROWS + row[None, :], mask=there[:, None], other=0.0)
            total += value[:, None] * read.to(tl.float32)
        to = outputs + o[:, None] * ROWS + row[None, :]
        tl.store(to, total.to(outputs.dtype.element_ty), mask=(block < n_out)[:, None])


@triton.jit
def multiply_back(
    gradients, inputs, values, gvalues, places, outputs, starts, order, n_in,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, NEED_X: tl.constexpr, NEED_VALUES: tl.constexpr, ATOMIC: tl.constexpr,
):  # fmt: skip
    """inputs[i, r] = sum of values[places[j]] gradients[outputs[j], r] over the nonzeros j of i, if NEED_X.

    And, if NEED_VALUES, gvalues[j] += <inputs[i], gradients[outputs[j]]> with the inputs that were there before.
    """
    row = tl.arange(0, ROWS)
    for first in range(0, n_in, BLOCK):
        block = first + tl.arange(0, BLOCK)
        i = tl.load(order + block, mask=block < n_in, other=0)
        start = tl.load(starts + i)
        length = tl.where(block < n_in, tl.load(starts + i + 1) - start, 0)
        at, mask = inputs + i[:, None] * ROWS + row[None, :], (block < n_in)[:, None]
        if NEED_VALUES:
            x = tl.load(at, mask=mask, other=0.0).to(tl.float32)
        total = tl.zeros((BLOCK, ROWS), tl.float32)
        output = tl.load(outputs + start, mask=length > 0, other=0)
        for j in range(0, tl.max(length)):
            there, here = j < length, output
            output = tl.load(outputs + start + j + 1, mask=j + 1 < length, other=0)  # of the next, in time
            read = tl.load(gradients + here[:, None] * ROWS + row[None, :], mask=there[:, None], other=0.0)
            read = read.to(tl.float32)
            if NEED_X:
                place = tl.load(places + start + j, mask=there, other=0)
                total += tl.load(values + place, mask=there, other=0.0).to(tl.float32)[:, None] * read
            if NEED_VALUES:
                product = tl.sum(x * read, 1)
                if ATOMIC:
                    tl.atomic_add(gvalues + start + j, product, mask=there, sem="relaxed")
                else:
                    before = tl.load(gvalues + start + j, mask=there, other=0.0)
                    tl.store(gvalues + start + j, before + product, mask=there)
        if NEED_X:
            tl.store(at, total.to(inputs.dtype.element_ty), mask=mask)
