"""The sparse part S of a product, forward and both gradients, by torch's embedding bags: weighted sums of rows.

A table holds a row for each column of S that is not empty: the feature over the batch, for a convolution the channel as
a tap sees it over all output pixels. Then S x is one bag of the table's rows for each row of S, S^T gy the same with S
transposed, and the gradient to a value the dot product of two rows. Tables are made in pieces of at most 4 MB.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from subspace.fixed import wide
from subspace.kernels import native, native_conv
from subspace.kernels.geometry import Geometry, Window

PIECE = 1 << 20  # numbers in a table
LONG = 1 << 13  # numbers in a row of it; the bags are made for rows that stay in cache
FEW = 8  # rows or pixels, below which gathering beats the bags' gradient

Made = TypeVar("Made")
_made = WeakTensorKeyDictionary()


class Bags(NamedTuple):
    """S in both orders, int32: row and column (k,), where each row starts; by column: places, rows, starts."""

    row: Tensor
    column: Tensor
    row_starts: Tensor
    by_column: Tensor
    row_by_column: Tensor
    column_starts: Tensor

    def forward(self, table: Tensor, values: Tensor) -> Tensor:
        """S table: (columns, n) -> (rows, n)."""
        return _bag(table, self.column, self.row_starts, values)

    def adjoint(self, table: Tensor, values: Tensor) -> Tensor:
        """S^T table: (rows, n) -> (columns, n)."""
        return _bag(table, self.row_by_column, self.column_starts, values[self.by_column])

    def dots(self, gy: Tensor, x: Tensor) -> Tensor:
        """<gy[row_j], x[column_j]>: (rows, n), (columns, n) -> (k,)."""
        if x.shape[1] < FEW:
            return (gy.index_select(0, self.row) * x.index_select(0, self.column)).sum(1)
        return torch.ops.aten._embedding_bag_per_sample_weights_backward(  # type: ignore[no-any-return]
            gy, x, self.column, self.row_starts, self.row, 0
        )


def _bag(table: Tensor, index: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    bag: Tensor = torch.embedding_bag(table, index, starts, False, 0, False, weights)[0]
    return bag


def _bags(row: Tensor, column: Tensor, n_rows: int, n_columns: int) -> Bags:
    by_column = torch.argsort(column, stable=True)
    columns = column[by_column]
    device = row.device
    row_starts = torch.searchsorted(row, torch.arange(n_rows, device=device))
    column_starts = torch.searchsorted(columns, torch.arange(n_columns, device=device))
    parts = row, column, row_starts, by_column, row[by_column], column_starts
    return Bags(*(part.int() for part in parts))


def _kept(index: Tensor, make: Callable[..., Made], *arguments: object) -> Made:
    """make(index, *arguments), kept until the index is written to or gone."""
    if index.is_inference():  # which counts no versions
        return make(index, *arguments)
    wanted = (index._version, make, *arguments)
    found = _made.get(index)  # type: ignore[no-untyped-call]
    if found is None or found[0] != wanted:
        with torch.inference_mode(False):
            found = wanted, make(index, *arguments)
        _made[index] = found
    return found[1]  # type: ignore[no-any-return]


def _linear_bags(index: Tensor, n_out: int, n_in: int) -> Bags:
    row = index // n_in
    return _bags(row, index - row * n_in, n_out, n_in)


def linear(x: Tensor, values: Tensor, index: Tensor, shape: tuple[int, ...], y: Tensor) -> None:
    """y += x S^T in place: (rows, n_in) -> (rows, n_out)."""
    if len(values) == 0:
        return
    bags, weights = _kept(index, _linear_bags, *shape), values.to(wide(x.dtype))
    for part in _pieces(len(x), max(1, min(LONG, PIECE // max(shape)))):
        y[part] += bags.forward(_table(x[part]), weights).t().contiguous()


def linear_backward(
    gy: Tensor,
    x: Tensor,
    values: Tensor,
    index: Tensor,
    shape: tuple[int, ...],
    gx: Tensor | None,
    needs_values: bool,
) -> Tensor | None:
    """gx += gy S in place where given; returns gvalues, or None if not needed."""
    dtype = wide(x.dtype)
    gvalues = values.new_zeros(len(values), dtype=dtype) if needs_values else None
    if len(values) == 0:
        return gvalues
    bags, weights = _kept(index, _linear_bags, *shape), values.to(dtype)
    for part in _pieces(len(x), max(1, min(LONG, PIECE // max(shape)))):
        table = _table(gy[part])
        if gvalues is not None:
            gvalues += bags.dots(table, _table(x[part]))
        if gx is not None:
            gx[part] += bags.adjoint(table, weights).t().contiguous()
    return gvalues


def _table(rows: Tensor) -> Tensor:
    return rows.to(wide(rows.dtype)).t().contiguous()


def _pieces(n: int, step: int) -> Iterator[slice]:
    return (slice(first, first + step) for first in range(0, n, step))


class Taps(NamedTuple):
    """S of a convolution: bags over its rows and columns (tap, channel) that are not empty, and which these are.

    rows: output channels. channels: input channels. blocks: for each tap that occurs its number, its columns, and their
    places among the channels.
    """

    bags: Bags
    rows: Tensor
    channels: Tensor
    blocks: list[tuple[int, slice, Tensor]]

    @property
    def columns(self) -> int:
        """How many of them."""
        return len(self.bags.column_starts)


def _taps(index: Tensor, shape: tuple[int, ...], groups: int) -> Taps:
    taps, width = math.prod(shape[2:]), shape[1]
    out, within = index // (width * taps), index % (width * taps)
    rows, row = torch.unique(out, return_inverse=True)
    channels, channel = torch.unique(out // (shape[0] // groups) * width + within // taps, return_inverse=True)
    columns, column = torch.unique(within % taps * len(channels) + channel, return_inverse=True)
    blocks, first = [], 0
    used, counts = torch.unique_consecutive(columns // len(channels), return_counts=True)
    for tap, count in zip(used.tolist(), counts.tolist(), strict=True):
        block = slice(first, first := first + count)
        blocks.append((tap, block, columns[block] % len(channels)))
    return Taps(_bags(row, column, len(rows), len(columns)), rows, channels, blocks)


def conv(x: Tensor, values: Tensor, index: Tensor, shape: tuple[int, ...], geometry: Geometry, y: Tensor) -> None:
    """y += S * x in place: (N, C, *spatial) -> (N, C_out, *spatial')."""
    if len(values) == 0:
        return
    if _native(x, y, geometry):
        native_conv.sparse_conv(x, values.float(), index, shape, y, *geometry[1:])
        return
    taps, weights = _kept(index, _taps, shape, geometry.groups), values.to(wide(x.dtype))
    for samples, parts in _parts(y, taps):
        planes = _planes(x[samples], taps.channels)
        for part in parts:
            where = (samples, slice(None), *part)
            table = _patches(planes, taps, geometry, part)
            product = taps.bags.forward(table.flatten(1), weights).view(-1, *table.shape[1:])
            y[where].index_add_(1, taps.rows, _samples(product).to(y.dtype))


def conv_backward(
    gy: Tensor,
    x: Tensor,
    values: Tensor,
    index: Tensor,
    shape: tuple[int, ...],
    geometry: Geometry,
    gx: Tensor | None,
    needs_values: bool,
) -> Tensor | None:
    """gx += S^T gy in place where given; returns gvalues, or None if not needed."""
    dtype = wide(x.dtype)
    gvalues = values.new_zeros(len(values), dtype=dtype) if needs_values else None
    if len(values) == 0:
        return gvalues
    if _native(x, gy, geometry) and (gx is None or gx.is_contiguous()):
        return native_conv.sparse_conv_backward(gy, x, values.float(), index, shape, gx, *geometry[1:])
    taps, weights = _kept(index, _taps, shape, geometry.groups), values.to(dtype)
    for samples, parts in _parts(gy, taps):
        planes = _planes(x[samples], taps.channels)
        gplanes = torch.zeros_like(planes)
        for part in parts:
            where = (samples, slice(None), *part)
            table = _planes(gy[where], taps.rows).flatten(1)
            if gvalues is not None:
                gvalues += taps.bags.dots(table, _patches(planes, taps, geometry, part).flatten(1))
            if gx is not None:
                product = taps.bags.adjoint(table, weights)
                _add_patches(product, gplanes, taps, geometry, part)
        if gx is not None:
            gx[samples].index_add_(1, taps.channels, _samples(gplanes).to(gx.dtype))
    return gvalues


def _native(x: Tensor, y: Tensor, geometry: Geometry) -> bool:
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and len(geometry.kernel) == 2
    return plain and native.available() and x.is_contiguous() and y.is_contiguous()


def _parts(y: Tensor, taps: Taps) -> Iterator[tuple[slice, list[Window]]]:
    """Slices of the batch, each with parts of the spatial axes, of which only the first is ever cut."""
    whole = tuple(slice(0, size) for size in y.shape[2:])
    pixels, line = math.prod(y.shape[2:]), math.prod(y.shape[3:])
    most = min(LONG, PIECE // max(taps.columns, len(taps.rows)))
    step = max(1, most // line)
    parts = [(slice(first, min(first + step, y.shape[2])), *whole[1:]) for first in range(0, y.shape[2], step)]
    return ((samples, parts) for samples in _pieces(len(y), max(1, most // pixels)))


def _planes(x: Tensor, channels: Tensor) -> Tensor:
    """(C, *spatial, N), of these channels: with the batch last a shift moves long pieces, whatever the image's size."""
    if x.dim() in (4, 5) and not x.is_contiguous() and x.movedim(1, -1).is_contiguous():
        rows = x.movedim(1, -1)
        planes = rows.flatten(1).to(wide(x.dtype)).t().contiguous().view(*rows.shape[1:], len(x)).movedim(-2, 0)
        return planes.index_select(0, channels)
    chosen = x if len(channels) == x.shape[1] else x.index_select(1, channels)
    return chosen.flatten(1).to(wide(x.dtype)).t().contiguous().view(*chosen.shape[1:], len(x))


def _samples(planes: Tensor) -> Tensor:
    """(C, *spatial, N) -> (N, C, *spatial)."""
    return planes.flatten(0, -2).t().contiguous().view(planes.shape[-1], *planes.shape[:-1])


def _patches(planes: Tensor, taps: Taps, geometry: Geometry, part: Window) -> Tensor:
    """(columns, *part, N): for each column of S its channel as its tap sees it, zero outside."""
    table = planes.new_zeros(taps.columns, *(axis.stop - axis.start for axis in part), planes.shape[-1])
    for tap, block, channels in taps.blocks:
        seen, lands = geometry.window(tap, planes.shape[1:-1], part)
        source, target = (slice(None), *seen), (block, *lands)
        table[target] = planes[source].index_select(0, channels)
    return table


def _add_patches(product: Tensor, gplanes: Tensor, taps: Taps, geometry: Geometry, part: Window) -> None:
    """The adjoint of `_patches`, added to gplanes."""
    product = product.view(-1, *(axis.stop - axis.start for axis in part), gplanes.shape[-1])
    for tap, block, channels in taps.blocks:
        seen, lands = geometry.window(tap, gplanes.shape[1:-1], part)
        target, source = (slice(None), *seen), (block, *lands)
        gplanes[target].index_add_(0, channels, product[source])
