"""The sparse part S of a 2-d convolution in channels_last, added to y or to a gradient.

As in `sparse`, x is first laid across, so that a nonzero reads TILE neighbours: here each channel of each phase of the
stride by itself, high x wide x N cells, each for a pixel, padding, or an output. In them the pixels that a tap sees
stand a fixed number of cells behind the outputs, so no nonzero asks for a coordinate: cells without a pixel hold zeros,
as many as a tap can reach. With the images last, that number is a multiple of N: of 16, reads are of 16 bytes each.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from subspace.products.geometry import Geometry
from subspace.products.sparse_index import cached_per_index
from subspace.products.triton.orders import ConvOrders, conv_orders
from subspace.products.triton.sparse import ends, nonzeros, share
from subspace.products.weight import Weight

TILE, BLOCK, DEPTH = 64, 32, 4  # cells, channels, and nonzeros of each at a time: no others were tried


class Image(NamedTuple):
    """Images (N, C, height, width) in cells: cell (h, w) of phase (a, b) is pixel (h, w) * stride + (a, b) - pad."""

    images: int
    height: int
    width: int
    channels: int
    stride_h: int
    stride_w: int
    pad_h: int
    pad_w: int
    wide: int
    high: int

    @property
    def phases(self) -> int:
        """Of the stride."""
        return self.stride_h * self.stride_w

    @property
    def tiles(self) -> int:
        """Of cells of one channel of one phase."""
        return -(-self.images * self.high * self.wide // TILE)

    @property
    def block(self) -> int:
        """Channels at a time."""
        return min(BLOCK, 1 << (self.channels - 1).bit_length())

    @property
    def programs(self) -> int:
        """One for each tile of each block of each phase."""
        return self.tiles * self.phases * -(-self.channels // self.block)


def forward(x: Tensor, w: Weight, geometry: Geometry, y: Tensor) -> None:
    """y += S * x in place: (N, C, H, W) -> (N, n_out, H', W'), both channels_last."""
    found, (seen, made, margin) = _orders(w, geometry), _images(x, y, geometry)
    across = _lay_across(x, seen, 0, margin)
    _multiply[(made.programs,)](
        across, y, w.values, found.by_row, found.columns, found.steps, found.row_starts, across.shape[1],
        len(w.values), *made[:-1], TILE=TILE, BLOCK=made.block, DEPTH=DEPTH,
    )  # fmt: skip


def backward(
    gy: Tensor, x: Tensor, w: Weight, geometry: Geometry, gx: Tensor | None, needs_values: bool
) -> Tensor | None:
    """gx += S^T gy in place, where given, all channels_last; returns gvalues in float32, if needed.

    Its sums over the pixels are added up as they come, or, where torch is told to be deterministic, in order.
    """
    found, (seen, made, margin) = _orders(w, geometry), _images(x, gy, geometry)
    across, k = _lay_across(gy, made, margin, 0), len(w.values)
    atomic = not torch.are_deterministic_algorithms_enabled()
    sums = x.new_zeros(1 if atomic else seen.tiles, k, dtype=torch.float32)
    _multiply_back[(seen.programs,)](
        across, x, x if gx is None else gx, w.values, sums, found.by_column, found.row_by_column, found.steps_by_column,
        found.column_starts, across.shape[1], margin, k, *seen[:-1], TILE=TILE, BLOCK=seen.block, DEPTH=DEPTH,
        NEED_X=gx is not None, NEED_VALUES=needs_values, ATOMIC=atomic,
    )  # fmt: skip
    return torch.empty_like(sums[0]).index_copy_(0, found.by_column.long(), sums.sum(0)) if needs_values else None


def _orders(w: Weight, geometry: Geometry) -> ConvOrders:
    return cached_per_index(w.index, conv_orders, w.shape, geometry.groups, geometry.stride, geometry.dilation)


def _images(x: Tensor, y: Tensor, geometry: Geometry) -> tuple[Image, Image, int]:
    """x and y in cells, and how many cells a tap can reach, in whole tiles.

    There are cells for all outputs and pixels; and behind the outputs as many as a tap reaches, but for those that
    begin the next line, which are the padding before its pixels.
    """
    cells, reaches = [], []
    for size, out, kernel, stride, padding, dilation in zip(x.shape[2:], y.shape[2:], *geometry[:4], strict=True):
        reach = (kernel - 1) * dilation // stride
        cells.append(max(out, -(-(size + padding) // stride), out + reach - padding // stride))
        reaches.append(reach)
    seen = Image._make([len(x), *x.shape[2:], x.shape[1], *geometry.stride, *geometry.padding, *reversed(cells)])
    made = Image._make([len(y), *y.shape[2:], y.shape[1], 1, 1, 0, 0, *reversed(cells)])
    return seen, made, triton.cdiv((reaches[0] * cells[1] + reaches[1]) * len(x), TILE) * TILE


def _lay_across(x: Tensor, image: Image, before: int, after: int) -> Tensor:
    """(phases * C, cells): zero in cells without a pixel, and in those before and after."""
    length = before + image.tiles * TILE + after
    across = x.new_empty(image.phases * image.channels, length)
    _copy_across[(length // TILE * image.phases * triton.cdiv(image.channels, TILE),)](
        x, across, length, before, *image[:-1], TILE=TILE, BLOCK=TILE
    )
    return across


@triton.jit
def _copy_across(
    x, across, length, before,
    images, height, width, channels, stride_h, stride_w, pad_h, pad_w, wide,
    TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """across[phase, c, before + cell] = the pixel of the cell in x, zero if there is none."""
    tile, phase, first = share(channels, stride_h * stride_w, BLOCK)
    place, c = tile * TILE + tl.arange(0, TILE), first + tl.arange(0, BLOCK)
    at, inside = _pixels(
        x, place - before, phase, c, images, height, width, channels, stride_h, stride_w, pad_h, pad_w, wide
    )
    to = across + (phase * channels + c).to(tl.int64)[:, None] * length + place[None, :]
    tl.store(to, tl.trans(tl.load(at, mask=inside, other=0.0)), mask=(c < channels)[:, None])


@triton.jit
def _multiply(
    across, y, values, slots, columns, steps, starts, length, k,
    images, height, width, channels, stride_h, stride_w, pad_h, pad_w, wide,
    TILE: tl.constexpr, BLOCK: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """y[o, cell] += sum of values[slots[j]] across[columns[j], cell + steps[j]] over the nonzeros j of o."""
    tile, phase, first = share(channels, 1, BLOCK)
    cell, o = tile * TILE + tl.arange(0, TILE), first + tl.arange(0, BLOCK)
    start, end = ends(starts, first, channels, BLOCK, DEPTH)
    total = tl.zeros((BLOCK, TILE), tl.float32)
    for j in range(0, tl.max(end - start), DEPTH):
        at = nonzeros(start, j, BLOCK, DEPTH)
        column = tl.load(columns + at, mask=at < end, other=0)
        slot = tl.load(slots + at, mask=at < end, other=0)
        value = tl.load(values + slot, mask=at < end, other=0.0).to(tl.float32)
        from_cell = column.to(tl.int64) * length + _shift(steps, at, end, k, wide, images)
        read = tl.load(across + from_cell[:, None] + cell[None, :], mask=(at < end)[:, None], other=0.0).to(tl.float32)
        total += tl.sum((value[:, None] * read).reshape(DEPTH, BLOCK, TILE), 0)
    to, inside = _pixels(y, cell, phase, o, images, height, width, channels, stride_h, stride_w, pad_h, pad_w, wide)
    _add(to, inside, tl.trans(total))


@triton.jit
def _multiply_back(
    across, x, gx, values, gvalues, slots, outputs, steps, starts, length, before, k,
    images, height, width, channels, stride_h, stride_w, pad_h, pad_w, wide,
    TILE: tl.constexpr, BLOCK: tl.constexpr, DEPTH: tl.constexpr,
    NEED_X: tl.constexpr, NEED_VALUES: tl.constexpr, ATOMIC: tl.constexpr,
):  # fmt: skip
    """gx[c, cell] += sum of values[slots[j]] across[outputs[j], cell - steps[j]] over the nonzeros j of c, if NEED_X.

    And, if NEED_VALUES, gvalues[j] += <x[c], across[outputs[j]]> so shifted; if not ATOMIC, each tile's to a row of its
    own. All of it for one phase.
    """
    tile, phase, first = share(channels, stride_h * stride_w, BLOCK)
    cell, c = tile * TILE + tl.arange(0, TILE), first + tl.arange(0, BLOCK)
    if NEED_VALUES:
        at_x, seen = _pixels(x, cell, phase, c, images, height, width, channels, stride_h, stride_w, pad_h, pad_w, wide)
        inputs = tl.trans(tl.load(at_x, mask=seen, other=0.0)).to(tl.float32)[None, :, :]
        if not ATOMIC:
            gvalues += tile.to(tl.int64) * k
    start, end = ends(starts + phase * channels, first, channels, BLOCK, DEPTH)
    total = tl.zeros((BLOCK, TILE), tl.float32)
    for j in range(0, tl.max(end - start), DEPTH):
        at = nonzeros(start, j, BLOCK, DEPTH)
        output = tl.load(outputs + at, mask=at < end, other=0)
        if NEED_X:
            slot = tl.load(slots + at, mask=at < end, other=0)
            value = tl.load(values + slot, mask=at < end, other=0.0).to(tl.float32)
        from_cell = output.to(tl.int64) * length + before - _shift(steps, at, end, k, wide, images)
        read = tl.load(across + from_cell[:, None] + cell[None, :], mask=(at < end)[:, None], other=0.0).to(tl.float32)
        if NEED_X:
            total += tl.sum((value[:, None] * read).reshape(DEPTH, BLOCK, TILE), 0)
        if NEED_VALUES:
            product = (inputs * read.reshape(DEPTH, BLOCK, TILE)).reshape(DEPTH * BLOCK, TILE)
            product_sum = tl.sum(product, 1)
            if ATOMIC:
                tl.atomic_add(gvalues + at, product_sum, mask=at < end, sem="relaxed")
            else:
                tl.store(gvalues + at, product_sum, mask=at < end)
    if NEED_X:
        to, inside = _pixels(
            gx, cell, phase, c, images, height, width, channels, stride_h, stride_w, pad_h, pad_w, wide
        )
        _add(to, inside, tl.trans(total))


@triton.jit
def _shift(steps, at, end, k, wide, images):
    """By how many cells the taps of the nonzeros reach."""
    down = tl.load(steps + at, mask=at < end, other=0)
    return (down * wide + tl.load(steps + k + at, mask=at < end, other=0)) * images


@triton.jit
def _pixels(
    x, cell, phase, c, images, height, width, channels, stride_h, stride_w, pad_h, pad_w, wide
):  # fmt: skip
    """Pointers to the pixels of the cells in x, (cells, channels), and whether there are such."""
    h = cell // (images * wide) * stride_h + phase // stride_w - pad_h
    w = cell // images % wide * stride_w + phase % stride_w - pad_w
    inside = (cell >= 0) & (h >= 0) & (h < height) & (w >= 0) & (w < width)
    pixel = ((cell % images).to(tl.int64) * height + h) * width + w
    return x + pixel[:, None] * channels + c[None, :], inside[:, None] & (c < channels)[None, :]


@triton.jit
def _add(to, inside, tile):
    """Add the tile there, where inside."""
    tile += tl.load(to, mask=inside, other=0.0).to(tl.float32)
    tl.store(to, tile.to(to.dtype.element_ty), mask=inside)
