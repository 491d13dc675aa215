"""The transforms of a few rows, as parts of a kernel: read, two matrix products on the chip, written.

x and y point to the first of the rows, of which there are `count`; rows behind it are neither read nor written. The
places of a row from n_in (n_out) to q are zero (dropped). Q = Q1 Q2; ROWS rows are worked on at a time, PART of the
Q1 / 2 frequencies of the columns, and PART2 of the Q2 of the rows. See `tables` for the algorithm and the names.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def makhoul(n, Q: tl.constexpr):
    """Where v[n] stands in x."""
    return tl.where(2 * n < Q, 2 * n, 2 * (Q - 1 - n) + 1)


@triton.jit
def _columns_in_a_line(first, Q1: tl.constexpr, Q2: tl.constexpr, ROWS: tl.constexpr, PART2: tl.constexpr):
    """n and the row of the places of (Q1, ROWS, PART2), in a line: only so do neighbours in memory stay neighbours.

    Of a tensor of several axes without neighbours that the compiler can prove, it takes any axis for the fastest.
    """
    place = tl.arange(0, Q1 * ROWS * PART2)
    return place // (ROWS * PART2) * Q2 + first + place % PART2, place // PART2 % ROWS


@triton.jit
def dct(
    x, y, signs, scale, columns, rows, twiddles, turn, count, n_in, n_out,
    Q1: tl.constexpr, Q2: tl.constexpr, ROWS: tl.constexpr, PART: tl.constexpr, PART2: tl.constexpr,
    SIGNED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y = scale DCT(signs x)."""
    Q: tl.constexpr = Q1 * Q2
    HALF: tl.constexpr = Q1 // 2
    dtype = x.dtype.element_ty
    n, row = _columns_in_a_line(0, Q1, Q2, ROWS, Q2)
    i = makhoul(n, Q)
    v = tl.load(x + row * n_in + i, mask=(row < count) & (i < n_in), other=0.0)
    if SIGNED:
        v = (v.to(tl.float32) * tl.load(signs + n)).to(dtype)
    v = tl.trans(v.reshape(Q1, ROWS * Q2))
    n2 = tl.arange(0, ROWS * Q2) % Q2
    for k in range(0, HALF, PART):
        k1 = k + tl.arange(0, PART)
        both = tl.dot(
            v, _square(columns, tl.arange(0, Q1), 2 * k + tl.arange(0, 2 * PART), Q1), input_precision=PRECISION
        )
        real, imaginary = tl.split(both.reshape(ROWS * Q2, PART, 2))
        where = n2[:, None] * HALF + k1[None, :]
        cos, sin = tl.load(twiddles + where), tl.load(twiddles + Q2 * HALF + where)
        p, q = real * cos + imaginary * sin, imaginary * cos - real * sin
        packed = k1[None, :] == 0
        cos, sin = tl.load(turn + n2)[:, None], tl.load(turn + Q2 + n2)[:, None]
        p_im, q_im = tl.where(packed, -q * sin, -p), tl.where(packed, q * cos, q)
        q = tl.where(packed, 0.0, q)
        p, q = _rows_last(p.to(dtype), ROWS, Q2, PART), _rows_last(q.to(dtype), ROWS, Q2, PART)
        p_im, q_im = _rows_last(p_im.to(dtype), ROWS, Q2, PART), _rows_last(q_im.to(dtype), ROWS, Q2, PART)
        for k2 in range(0, Q2, PART2):
            to = k2 + tl.arange(0, PART2)
            cosines = _square(rows, tl.arange(0, Q2), to, Q2)
            sines = _square(rows + Q2 * Q2, tl.arange(0, Q2), to, Q2)
            re = tl.dot(p, cosines, input_precision=PRECISION)
            re = tl.dot(q, sines, re, input_precision=PRECISION)
            im = tl.dot(p_im, sines, input_precision=PRECISION)
            im = tl.dot(q_im, cosines, im, input_precision=PRECISION)
            _write(y, re, im, scale, k, k2, count, n_out, Q1, Q2, ROWS, PART, PART2)


@triton.jit
def _write(
    y, re, im, scale, k, k2, count, n_out,
    Q1: tl.constexpr, Q2: tl.constexpr, ROWS: tl.constexpr, PART: tl.constexpr, PART2: tl.constexpr,
):  # fmt: skip
    """The places of y that hold re, and those that hold im, both (ROWS PART, PART2)."""
    re = re.reshape(ROWS, PART, PART2).permute(0, 2, 1)  # neighbours in memory last
    im = im.reshape(ROWS, PART, PART2).permute(0, 2, 1).reshape(ROWS * PART2 * PART)
    at, row = _ascending(k, k2, Q1, ROWS, PART, PART2)
    re *= tl.where(at == 0, scale * 0.7071067811865476, scale)
    tl.store(y + row * n_out + at, re.to(y.dtype.element_ty), mask=(row < count) & (at < n_out))
    at, row, packed = _descending(k, k2, Q1, Q2, ROWS, PART, PART2)
    im *= tl.where(packed, scale, -scale)
    tl.store(y + row * n_out + at, im.to(y.dtype.element_ty), mask=(row < count) & (at < n_out))


@triton.jit
def _ascending(k, k2, Q1: tl.constexpr, ROWS: tl.constexpr, PART: tl.constexpr, PART2: tl.constexpr):
    """Where re stands in the DCT of a row: (1, PART2, PART); and the row: (ROWS, 1, 1)."""
    k1, k2 = (k + tl.arange(0, PART))[None, None, :], (k2 + tl.arange(0, PART2))[None, :, None]
    return k1 + Q1 * k2, tl.arange(0, ROWS)[:, None, None]


@triton.jit
def _descending(k, k2, Q1: tl.constexpr, Q2: tl.constexpr, ROWS: tl.constexpr, PART: tl.constexpr, PART2: tl.constexpr):
    """The same of im, in a line; and which of it is of the packed row."""
    place = tl.arange(0, ROWS * PART2 * PART)
    k1, k2 = k + place % PART, k2 + place // PART % PART2
    at = tl.where(k1 == 0, Q1 // 2 + Q1 * k2, Q1 * Q2 - k1 - Q1 * k2)
    return at, place // (PART * PART2), k1 == 0


@triton.jit
def idct(
    y, x, signs, scale, columns, rows, twiddles, turn, count, n_out, n_in, other,
    Q1: tl.constexpr, Q2: tl.constexpr, ROWS: tl.constexpr, PART2: tl.constexpr,
    SIGNED: tl.constexpr, PRECISION: tl.constexpr, WRITE: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """x = scale signs IDCT(y), if WRITE; returns <other, signs IDCT(y)>, if DOT, else 0."""
    Q: tl.constexpr = Q1 * Q2
    HALF: tl.constexpr = Q1 // 2
    dtype = y.dtype.element_ty
    at, row = _ascending(0, 0, Q1, ROWS, HALF, Q2)
    re = tl.load(y + row * n_out + at, mask=(row < count) & (at < n_out), other=0.0)
    re = (re.to(tl.float32) * tl.where(at == 0, 0.7071067811865476, 1.0)).to(dtype)
    re = re.permute(0, 2, 1).reshape(ROWS * HALF, Q2)
    at, row, packed = _descending(0, 0, Q1, Q2, ROWS, HALF, Q2)
    im = tl.load(y + row * n_out + at, mask=(row < count) & (at < n_out), other=0.0)
    im = (im.to(tl.float32) * tl.where(packed, 1.0, -1.0)).to(dtype)
    im = im.reshape(ROWS, Q2, HALF).permute(0, 2, 1).reshape(ROWS * HALF, Q2)
    packed = (tl.arange(0, ROWS * HALF) % HALF)[:, None] == 0
    total = 0.0
    for first in range(0, Q2, PART2):
        part = first + tl.arange(0, PART2)
        cosines = tl.trans(_square(rows, part, tl.arange(0, Q2), Q2))
        sines = tl.trans(_square(rows + Q2 * Q2, part, tl.arange(0, Q2), Q2))
        re_cos = tl.dot(re, cosines, input_precision=PRECISION)
        im_sin = tl.dot(im, sines, input_precision=PRECISION)
        re_sin = tl.dot(re, sines, input_precision=PRECISION)
        im_cos = tl.dot(im, cosines, input_precision=PRECISION)
        cos, sin = tl.load(turn + part)[None, :], tl.load(turn + Q2 + part)[None, :]
        p = re_cos - tl.where(packed, 0.0, im_sin)
        q = tl.where(packed, im_cos * cos - im_sin * sin, im_cos + re_sin)
        where = part[None, :] * HALF + (tl.arange(0, ROWS * HALF) % HALF)[:, None]
        cos, sin = tl.load(twiddles + where), tl.load(twiddles + Q2 * HALF + where)
        both = tl.join(p * cos - q * sin, p * sin + q * cos).to(dtype)
        both = both.reshape(ROWS, HALF, PART2, 2).permute(0, 2, 1, 3).reshape(ROWS * PART2, Q1)
        v = tl.dot(both, tl.trans(_square(columns, tl.arange(0, Q1), tl.arange(0, Q1), Q1)), input_precision=PRECISION)
        v = tl.trans(v).reshape(Q1 * ROWS * PART2)
        n, to = _columns_in_a_line(first, Q1, Q2, ROWS, PART2)
        i = makhoul(n, Q)
        total += _place_back(v, n, to, i, x, signs, scale, count, n_in, other, SIGNED, WRITE, DOT)
    return total


@triton.jit
def _place_back(
    v, n, row, i, x, signs, scale, count, n_in, other,
    SIGNED: tl.constexpr, WRITE: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """x[row, i] = scale signs v, if WRITE; returns <other, signs v>, if DOT, else 0."""
    mask = (row < count) & (i < n_in)
    if SIGNED:
        v *= tl.load(signs + n)
    total = 0.0
    if DOT:
        total = tl.sum(v * tl.load(other + row * n_in + i, mask=mask, other=0.0).to(tl.float32))
    if WRITE:
        tl.store(x + row * n_in + i, (v * scale).to(x.dtype.element_ty), mask=mask)
    return total


@triton.jit
def hadamard(
    x, y, signs_in, signs_out, scale, columns, rows, count, n_in, n_out, other,
    Q1: tl.constexpr, Q2: tl.constexpr, ROWS: tl.constexpr, PART: tl.constexpr, PART2: tl.constexpr,
    SIGNED_IN: tl.constexpr, SIGNED_OUT: tl.constexpr, PRECISION: tl.constexpr, WRITE: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """y = scale signs_out H (signs_in x), if WRITE; returns <other, signs_out H (signs_in x)>, if DOT, else 0."""
    dtype = x.dtype.element_ty
    m = tl.arange(0, ROWS * Q2)
    i, row = tl.arange(0, Q1)[:, None] * Q2 + (m % Q2)[None, :], (m // Q2)[None, :]
    v = tl.load(x + row * n_in + i, mask=(row < count) & (i < n_in), other=0.0)
    if SIGNED_IN:
        v = (v.to(tl.float32) * tl.load(signs_in + i)).to(dtype)
    v = tl.trans(v)
    total = 0.0
    for k in range(0, Q1, PART):
        z = tl.dot(v, _square(columns, tl.arange(0, Q1), k + tl.arange(0, PART), Q1), input_precision=PRECISION)
        z = _rows_last((z * Q1**-0.5).to(dtype), ROWS, Q2, PART)
        for k2 in range(0, Q2, PART2):
            to = k2 + tl.arange(0, PART2)
            u = tl.dot(z, _square(rows, tl.arange(0, Q2), to, Q2), input_precision=PRECISION) * Q1**0.5
            line = tl.arange(0, ROWS * PART)[:, None]
            at = (k + line % PART) * Q2 + to[None, :]
            total += _place_back(
                u, at, line // PART, at, y, signs_out, scale, count, n_out, other, SIGNED_OUT, WRITE, DOT
            )
    return total


@triton.jit
def _square(matrix, rows, columns, N: tl.constexpr):
    """matrix[rows, columns] of an N x N matrix."""
    return tl.load(matrix + rows[:, None] * N + columns[None, :])


@triton.jit
def _rows_last(z, ROWS: tl.constexpr, Q2: tl.constexpr, PART: tl.constexpr):
    """(ROWS Q2, PART) -> (ROWS PART, Q2)."""
    return z.reshape(ROWS, Q2, PART).permute(0, 2, 1).reshape(ROWS * PART, Q2)
