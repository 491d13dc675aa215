"""w itself, written once in the type that is asked for, and the gradients to theta read off the gradient to w.

T is made on the chip from the thin factors of `parts.matrix`, where torch's own operators would write and read it
several times in float32: a tile is an outer product of some of a row's coarse factors and all of its fine ones.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from subspace.products.weight import Needs, Weight

ENTRIES, NONZEROS = 1024, 128  # of T and of S, at a time

Factors = tuple[Tensor, Tensor]  # coarse: (terms, n_out, blocks), fine: (terms, n_out, within); no terms for T = 0


def build(w: Weight, factors: Factors, to: Tensor) -> None:
    """to = scale T + S: of the shape of w, contiguous or channels_last; each entry rounded once."""
    (n_out, blocks, _), how = _sizes(factors), _constants(w, factors, to)
    given = (*factors, to if w.scale is None else w.scale, w.shape[1], *_sizes(factors))  # no scale is read for T = 0
    if w.scale is None:
        to.zero_()
    else:
        _transform[(n_out * triton.cdiv(blocks, how["BLOCKS"]),)](to, *given, **how)
    if k := len(w.values):
        _add_sparse[(triton.cdiv(k, NONZEROS),)](to, w.values, w.index, k, *given, **how, NONZEROS=NONZEROS)


def read_gradients(gw: Tensor, w: Weight, factors: Factors, needs: Needs) -> tuple[Tensor | None, Tensor | None]:
    """<gw, T>, one element, and gw at the index of S: (k,), as needed, in float32; gw contiguous or channels_last."""
    rows, k = w.shape[0] if needs.scale else 0, len(w.values) if needs.values else 0
    sums, values = (gw.new_empty(n, dtype=torch.float32) for n in (rows, k))
    if rows + k:
        _read[(rows + triton.cdiv(k, NONZEROS),)](
            gw, sums, values, w.index, rows, k, *factors, w.shape[1], *_sizes(factors),
            **_constants(w, factors, gw), NONZEROS=NONZEROS,
        )  # fmt: skip
    return sums.sum(0, keepdim=True) if needs.scale else None, values if needs.values else None


def _sizes(factors: Factors) -> tuple[int, int, int]:
    """n_out, blocks, within."""
    coarse, fine = factors
    return coarse.shape[1], coarse.shape[2], fine.shape[2]


def _constants(w: Weight, factors: Factors, t: Tensor) -> dict[str, Any]:
    _, blocks, within = _sizes(factors)
    wide = triton.next_power_of_2(within)
    return {
        "TAPS": w.fans[1] // w.shape[1], "LAST": t.ndim > 2 and not t.is_contiguous(), "TERMS": len(factors[0]),
        "HADAMARD": w.transform == "hadamard", "WITHIN": wide,
        "BLOCKS": min(triton.next_power_of_2(blocks), max(1, ENTRIES // wide)),
    }  # fmt: skip


@triton.jit
def _transform(
    to, coarse, fine, scale, channels, n_out, blocks, within,
    TAPS: tl.constexpr, LAST: tl.constexpr, TERMS: tl.constexpr, HADAMARD: tl.constexpr,
    WITHIN: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """to = scale T, a tile in each program."""
    parts = tl.cdiv(blocks, BLOCKS)
    row, first = tl.program_id(0) // parts, tl.program_id(0) % parts * BLOCKS
    entries = _tile(coarse, fine, row, first, n_out, blocks, within, TERMS, WITHIN, BLOCKS)
    at, inside = _places(first, channels, blocks, within, TAPS, LAST, HADAMARD, WITHIN, BLOCKS)
    entries *= tl.load(scale).to(tl.float32)
    tl.store(to + row.to(tl.int64) * channels * TAPS + at, entries.to(to.dtype.element_ty), mask=inside)


@triton.jit
def _add_sparse(
    to, values, index, k, coarse, fine, scale, channels, n_out, blocks, within,
    TAPS: tl.constexpr, LAST: tl.constexpr, TERMS: tl.constexpr, HADAMARD: tl.constexpr,
    WITHIN: tl.constexpr, BLOCKS: tl.constexpr, NONZEROS: tl.constexpr,
):  # fmt: skip
    """to = scale T + S at the nonzeros of S, whose T is made anew: to holds it rounded."""
    j = tl.program_id(0) * NONZEROS + tl.arange(0, NONZEROS)
    row, channel, tap = _nonzero(index, j, k, channels, TAPS)
    total = tl.load(values + j, mask=j < k, other=0.0).to(tl.float32)
    if TERMS:
        column = tap * channels + channel if HADAMARD else channel * TAPS + tap  # as its factors count them
        block, inside, entries = column // within, column % within, tl.zeros((NONZEROS,), tl.float32)
        for term in tl.static_range(TERMS):
            line = term * n_out + row
            left = tl.load(coarse + line * blocks + block, mask=j < k, other=0.0)
            entries += left * tl.load(fine + line * within + inside, mask=j < k, other=0.0)
        total += entries * tl.load(scale).to(tl.float32)
    at = _offset(channel, tap, channels, TAPS, LAST)
    tl.store(to + row.to(tl.int64) * channels * TAPS + at, total.to(to.dtype.element_ty), mask=j < k)


@triton.jit
def _read(
    gw, sums, values, index, rows, k, coarse, fine, channels, n_out, blocks, within,
    TAPS: tl.constexpr, LAST: tl.constexpr, TERMS: tl.constexpr, HADAMARD: tl.constexpr,
    WITHIN: tl.constexpr, BLOCKS: tl.constexpr, NONZEROS: tl.constexpr,
):  # fmt: skip
    """sums[row] = <gw[row], T[row]> in the first programs, values[j] = gw[index[j]] in the others."""
    program = tl.program_id(0)
    if program < rows:
        total = tl.zeros((BLOCKS, WITHIN), tl.float32)
        for first in range(0, blocks, BLOCKS):
            entries = _tile(coarse, fine, program, first, n_out, blocks, within, TERMS, WITHIN, BLOCKS)
            at, inside = _places(first, channels, blocks, within, TAPS, LAST, HADAMARD, WITHIN, BLOCKS)
            read = tl.load(gw + program.to(tl.int64) * channels * TAPS + at, mask=inside, other=0.0)
            total += entries * read.to(tl.float32)
        tl.store(sums + program, tl.sum(total))
    else:
        j = (program - rows) * NONZEROS + tl.arange(0, NONZEROS)
        row, channel, tap = _nonzero(index, j, k, channels, TAPS)
        at = row.to(tl.int64) * channels * TAPS + _offset(channel, tap, channels, TAPS, LAST)
        tl.store(values + j, tl.load(gw + at, mask=j < k, other=0.0).to(tl.float32), mask=j < k)


@triton.jit
def _tile(
    coarse, fine, row, first, n_out, blocks, within, TERMS: tl.constexpr, WITHIN: tl.constexpr, BLOCKS: tl.constexpr
):
    """T in a row, from block `first` on: (BLOCKS, WITHIN), float32, zero outside."""
    block, inside = first + tl.arange(0, BLOCKS), tl.arange(0, WITHIN)
    total = tl.zeros((BLOCKS, WITHIN), tl.float32)
    for term in tl.static_range(TERMS):
        line = term * n_out + row
        left = tl.load(coarse + line * blocks + block, mask=block < blocks, other=0.0)
        right = tl.load(fine + line * within + inside, mask=inside < within, other=0.0)
        total += left[:, None] * right[None, :]
    return total


@triton.jit
def _places(
    first, channels, blocks, within,
    TAPS: tl.constexpr, LAST: tl.constexpr, HADAMARD: tl.constexpr, WITHIN: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Where in a row of w the entries of a `_tile` stand, and which of them there are."""
    block, inside = (first + tl.arange(0, BLOCKS))[:, None], tl.arange(0, WITHIN)[None, :]
    column = block * within + inside
    if HADAMARD and TAPS > 1:  # whose columns count the channels of a tap first
        at = _offset(column % channels, column // channels, channels, TAPS, LAST)
    elif LAST and TAPS > 1:
        at = _offset(block * (within // TAPS) + inside // TAPS, inside % TAPS, channels, TAPS, LAST)
    else:
        at = column
    return at, (inside < within) & (column < channels * TAPS)


@triton.jit
def _nonzero(index, j, k, channels, TAPS: tl.constexpr):
    """Row, channel and tap of the nonzero j."""
    place, n = tl.load(index + j, mask=j < k, other=0), channels * TAPS
    row, column = (place // n).to(tl.int32), (place % n).to(tl.int32)
    return row, column // TAPS, column % TAPS


@triton.jit
def _offset(channel, tap, channels, TAPS: tl.constexpr, LAST: tl.constexpr):
    """Where in a row of w, as memory has it, an entry stands."""
    return tap * channels + channel if LAST else channel * TAPS + tap
