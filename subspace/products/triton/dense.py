"""The dense part scale T diag(signs) of a product with rows, and its gradients: a kernel each way.

Every program takes a few rows at a time. Read of the device's memory are x and y alone, once; the tables come from the
caches.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from subspace.products.sparse_index import cached_per_index
from subspace.products.triton import transforms
from subspace.products.triton.lengths import length, split
from subspace.products.triton.settings import Settings, settings
from subspace.products.triton.tables import tables
from subspace.products.weight import Needs, Weight


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


def forward(x: Tensor, w: Weight, y: Tensor) -> None:
    """y = scale T (signs x): (rows, n_in) -> (rows, n_out), contiguous; there must be a scale."""
    q, given = _given(x, w)
    s = settings(q, w.transform, x.dtype.itemsize, backward=False)
    _transform[(_programs(x, s),)](x, y, *given, len(x), *_sizes(w), **_constants(x, w, q, s))


def backward(gy: Tensor, x: Tensor, w: Weight, needs: Needs, gx: Tensor | None) -> Tensor | None:
    """gx = scale signs T^T gy where given; returns <x, signs T^T gy>, one element in float32, if needed."""
    q, given = _given(x, w)
    s = settings(q, w.transform, x.dtype.itemsize, backward=True)
    programs = _programs(x, s)
    sums = x.new_empty(programs, dtype=torch.float32)
    _transform_back[(programs,)](
        gy, x, x if gx is None else gx, sums, *given, len(x), *_sizes(w), **_constants(x, w, q, s),
        NEED_X=gx is not None, NEED_SCALE=needs.scale,
    )  # fmt: skip
    return sums.sum(0, keepdim=True) if needs.scale else None


def _sizes(w: Weight) -> tuple[int, int]:
    n_out, n_in = w.fans
    return n_in, n_out


def _programs(x: Tensor, s: Settings) -> int:
    return min(-(-len(x) // s.rows), _processors(x.device) * s.programs)


@functools.cache
def _processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; of the interpreter few."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def _given(x: Tensor, w: Weight) -> tuple[int, tuple[Tensor, ...]]:
    """The length of the transform; and scale, signs (scale in their place where there are none) and tables."""
    if w.scale is None:
        raise ValueError("w must have a scale, got none")
    q = length(w.transform, *w.fans)
    signs = w.scale if w.signs is None else cached_per_index(w.signs, _in_order, q, w.transform)
    return q, (w.scale, signs, *tables(w.transform, q, x.dtype, x.device))


def _in_order(signs: Tensor, q: int, transform: str) -> Tensor:
    """One for each place of a transform, in the order in which it takes them."""
    padded = torch.ones(q, dtype=torch.int8, device=signs.device)
    padded[: len(signs)] = signs
    return torch.cat([padded[::2], padded[1::2].flip(0)]) if transform == "dct" else padded


def _constants(x: Tensor, w: Weight, q: int, s: Settings) -> dict[str, Any]:
    q1, q2 = split(q)
    # In float32 three products of tensor cores each, or one where torch's own may be so.
    allowed = torch.backends.cuda.matmul.allow_tf32
    precision = "ieee" if x.dtype != torch.float32 else "tf32" if allowed else "tf32x3"
    return {
        "HADAMARD": w.transform == "hadamard", "Q1": q1, "Q2": q2, "ROWS": s.rows, "PART": s.part, "PART2": s.part2,
        "SIGNED": w.signs is not None, "PRECISION": precision, "num_warps": s.warps, "num_stages": 1,
    }  # fmt: skip
