"""The sparse part S of a convolution, forward and both gradients, of any geometry: bags as in `sparse_matrix`.

The table has a row for each column of S that is not empty, the channel as a tap sees it over all output pixels: only
what S touches is ever moved. On the CPU the compiled kernel, where there is one; without it large maps by a
`sparse_conv_loop`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from subspace._base.dtypes import at_least_float32
from subspace.products.geometry import Geometry, Window, memory_format
from subspace.products.native import conv as native
from subspace.products.native import load
from subspace.products.parts import sparse_conv_loop
from subspace.products.parts.sparse_matrix import MAX_ROW, TABLE_SIZE, pieces
from subspace.products.sparse_index import Bags, cached_per_index, in_order
from subspace.products.weight import Weight

LARGE = 1 << 14  # output pixels over the batch


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
    return Taps(in_order(row, column, len(rows), len(columns)), rows, channels, blocks)


def forward(x: Tensor, w: Weight, geometry: Geometry, y: Tensor) -> None:
    """y += S * x in place: (N, C, *spatial) -> (N, C_out, *spatial')."""
    if _native(x, y, geometry):
        native.add_sparse(x, w, geometry, y)
        return
    if _large(x, y):
        sparse_conv_loop.forward(x, w, geometry, y)
        return
    taps, weights = cached_per_index(w.index, _taps, w.shape, geometry.groups), w.values.to(at_least_float32(x.dtype))
    for samples, parts in _parts(y, taps):
        planes = _planes(x[samples], taps.channels)
        for part in parts:
            where = (samples, slice(None), *part)
            table = _patches(planes, taps, geometry, part)
            product = taps.bags.forward(table.flatten(1), weights).view(-1, *table.shape[1:])
            y[where].index_add_(1, taps.rows, _samples(product).to(y.dtype))


def backward(gy: Tensor, x: Tensor, w: Weight, geometry: Geometry, gx: Tensor | None, gvalues: Tensor | None) -> None:
    """gx += S^T gy and gvalues += S's dot products, in place where given."""
    if _native(x, gy, geometry) and (gx is None or gx.is_contiguous()):
        native.add_sparse_gradients(gy, x, w, geometry, gx, gvalues)
        return
    if _large(x, gy):
        sparse_conv_loop.backward(gy, x, w, geometry, gx, gvalues)
        return
    taps, weights = cached_per_index(w.index, _taps, w.shape, geometry.groups), w.values.to(at_least_float32(x.dtype))
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


def _native(x: Tensor, y: Tensor, geometry: Geometry) -> bool:
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and len(geometry.kernel) == 2
    return plain and load.is_available() and x.is_contiguous() and y.is_contiguous()


def _large(x: Tensor, y: Tensor) -> bool:
    """Whether one nonzero moves enough numbers for a call of torch to cost nothing."""
    return x.device.type == "cpu" and x.dtype == at_least_float32(x.dtype) and len(y) * math.prod(y.shape[2:]) >= LARGE


def _parts(y: Tensor, taps: Taps) -> Iterator[tuple[slice, list[Window]]]:
    """Slices of the batch, each with parts of the spatial axes, of which only the first is ever cut."""
    whole = tuple(slice(0, size) for size in y.shape[2:])
    pixels, line = math.prod(y.shape[2:]), math.prod(y.shape[3:])
    most = min(MAX_ROW, TABLE_SIZE // max(taps.columns, len(taps.rows)))
    step = max(1, most // line)
    parts = [(slice(first, min(first + step, y.shape[2])), *whole[1:]) for first in range(0, y.shape[2], step)]
    return ((samples, parts) for samples in pieces(len(y), max(1, most // pixels)))


def _planes(x: Tensor, channels: Tensor) -> Tensor:
    """(C, *spatial, N), of these channels: with the batch last a shift moves long pieces, whatever the image's size."""
    if memory_format(x) != torch.contiguous_format:
        rows = x.movedim(1, -1)
        return _batch_last(rows).movedim(-2, 0).index_select(0, channels)
    return _batch_last(x if len(channels) == x.shape[1] else x.index_select(1, channels))


def _batch_last(x: Tensor) -> Tensor:
    return x.flatten(1).to(at_least_float32(x.dtype)).t().contiguous().view(*x.shape[1:], len(x))


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
