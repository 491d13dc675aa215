"""w itself, written once in the type that is asked for, and the gradients to theta read off the gradient to w.

T is made entry by entry from the thin factors of `parts.matrix`, on the chip, where torch's own operators would write
and read it several times in float32.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from subspace.products.weight import Weight

BLOCK = 1024  # entries at a time


Factors = tuple[Tensor, Tensor]  # coarse: (terms, n_out, blocks), fine: (terms, n_out, within); no terms for T = 0


def build(w: Weight, factors: Factors, to: Tensor) -> None:
    """to = scale T + S: of the shape of w, contiguous or channels_last; each entry rounded once."""
    scale, how = _scale(w, to), _constants(w, factors, to)
    n = w.fans[1]
    _transform[(w.shape[0] * triton.cdiv(n, how["BLOCK"]),)](to, *factors, scale, w.shape[1], *_sizes(factors), **how)
    if k := len(w.values):
        how["BLOCK"] = 128
        _add_sparse[(triton.cdiv(k, 128),)](
            to, *factors, scale, w.values, w.index, k, w.shape[1], *_sizes(factors), **how
        )


def inner(gw: Tensor, w: Weight, factors: Factors) -> Tensor:
    """<gw, T>, one element in float32; gw contiguous or channels_last."""
    sums = gw.new_empty(w.shape[0], dtype=torch.float32)
    _inner[(w.shape[0],)](gw, *factors, sums, w.shape[1], *_sizes(factors), **_constants(w, factors, gw))
    return sums.sum(0, keepdim=True)


def sample(gw: Tensor, w: Weight) -> Tensor:
    """gw at the index of S: (k,), float32; gw contiguous or channels_last."""
    found = gw.new_empty(k := len(w.values), dtype=torch.float32)
    if k:
        taps = w.fans[1] // w.shape[1]
        _sample[(triton.cdiv(k, 128),)](gw, found, w.index, k, w.shape[1], TAPS=taps, LAST=_is_last(gw), BLOCK=128)
    return found


def _scale(w: Weight, to: Tensor) -> Tensor:
    return to if w.scale is None else w.scale  # of no terms, it is not read


def _sizes(factors: Factors) -> tuple[int, int, int]:
    """n_out, blocks, within."""
    coarse, fine = factors
    return coarse.shape[1], coarse.shape[2], fine.shape[2]


def _is_last(t: Tensor) -> bool:
    return t.ndim > 2 and not t.is_contiguous()


def _constants(w: Weight, factors: Factors, t: Tensor) -> dict[str, Any]:
    n = w.fans[1]
    return {
        "TAPS": n // w.shape[1], "LAST": _is_last(t), "HADAMARD": w.transform == "hadamard",
        "TERMS": len(factors[0]), "BLOCK": min(BLOCK, triton.next_power_of_2(n)),
    }  # fmt: skip


@triton.jit
def _transform(
    to, coarse, fine, scale, channels, n_out, blocks, within,
    TAPS: tl.constexpr, LAST: tl.constexpr, HADAMARD: tl.constexpr, TERMS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """to = scale T, a block of a row in each program."""
    n = channels * TAPS
    parts = tl.cdiv(n, BLOCK)
    row, at = tl.program_id(0) // parts, tl.program_id(0) % parts * BLOCK + tl.arange(0, BLOCK)
    entries = _entries(coarse, fine, row, at, at < n, channels, n_out, blocks, within, TAPS, LAST, HADAMARD, TERMS)
    if TERMS:
        entries *= tl.load(scale).to(tl.float32)
    tl.store(to + row.to(tl.int64) * n + at, entries.to(to.dtype.element_ty), mask=at < n)


@triton.jit
def _add_sparse(
    to, coarse, fine, scale, values, index, k, channels, n_out, blocks, within,
    TAPS: tl.constexpr, LAST: tl.constexpr, HADAMARD: tl.constexpr, TERMS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """to = scale T + S at the nonzeros of S."""
    j = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row, at = _place(index, j, k, channels, TAPS, LAST)
    total = tl.load(values + j, mask=j < k, other=0.0).to(tl.float32)
    if TERMS:
        entries = _entries(coarse, fine, row, at, j < k, channels, n_out, blocks, within, TAPS, LAST, HADAMARD, TERMS)
        total += entries * tl.load(scale).to(tl.float32)
    tl.store(to + row.to(tl.int64) * channels * TAPS + at, total.to(to.dtype.element_ty), mask=j < k)


@triton.jit
def _inner(
    gw, coarse, fine, sums, channels, n_out, blocks, within,
    TAPS: tl.constexpr, LAST: tl.constexpr, HADAMARD: tl.constexpr, TERMS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """sums[row] = <gw[row], T[row]>."""
    row, n = tl.program_id(0), channels * TAPS
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, n, BLOCK):
        at = first + tl.arange(0, BLOCK)
        entries = _entries(coarse, fine, row, at, at < n, channels, n_out, blocks, within, TAPS, LAST, HADAMARD, TERMS)
        total += entries * tl.load(gw + row.to(tl.int64) * n + at, mask=at < n, other=0.0).to(tl.float32)
    tl.store(sums + row, tl.sum(total))


@triton.jit
def _sample(
    gw, found, index, k, channels, TAPS: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """found[j] = gw[index[j]]."""
    j = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row, at = _place(index, j, k, channels, TAPS, LAST)
    tl.store(found + j, tl.load(gw + row.to(tl.int64) * channels * TAPS + at, mask=j < k, other=0.0), mask=j < k)


@triton.jit
def _place(index, j, k, channels, TAPS: tl.constexpr, LAST: tl.constexpr):
    """The row of nonzero j, and where in memory it stands in it; an index is of the contiguous w."""
    place, n = tl.load(index + j, mask=j < k, other=0), channels * TAPS
    row, at = place // n, (place % n).to(tl.int32)
    if LAST:
        at = at % TAPS * channels + at // TAPS
    return row, at


@triton.jit
def _entries(
    coarse, fine, row, at, mask, channels, n_out, blocks, within,
    TAPS: tl.constexpr, LAST: tl.constexpr, HADAMARD: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """The entries of T in a row (or one for each place), where in memory they stand at these places of it, float32."""
    if LAST:
        channel, tap = at % channels, at // channels
    else:
        channel, tap = at // TAPS, at % TAPS
    if HADAMARD:  # of whose factors the columns count the channels of a tap first
        column = tap * channels + channel
        block, inside = column // within, column % within
    else:
        width = tl.maximum(within // TAPS, 1)  # of no terms within is 1
        block, inside = channel // width, channel % width * TAPS + tap
    total = tl.zeros(at.shape, tl.float32)
    for term in tl.static_range(TERMS):
        line = term * n_out + row
        total += tl.load(coarse + line * blocks + block, mask=mask, other=0.0) * tl.load(
            fine + line * within + inside, mask=mask, other=0.0
        )
    return total
