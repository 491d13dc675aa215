"""S in the two orders in which the kernels read it: the nonzeros of each output, and those of each input."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Orders(NamedTuple):
    """All int32, and none of a size that depends on where the nonzeros are: a captured graph can read them again.

    by_row, columns: (k,), of the nonzeros by output: their slots, and inputs. row_starts: (n_out + 1,), where in them
    each output begins. by_column, row_by_column: (k,), of the nonzeros by input: their slots, and outputs.
    column_starts: (n_in + 1,), where each input begins.
    """

    by_row: Tensor
    columns: Tensor
    row_starts: Tensor
    by_column: Tensor
    row_by_column: Tensor
    column_starts: Tensor


def orders(index: Tensor, n_out: int, n_in: int) -> Orders:
    """Of S with nonzeros at the flat index: (k,), of an (n_out, n_in) matrix."""
    index, by_row = index.sort()
    row = index // n_in
    column = index - row * n_in
    across = torch.argsort(column, stable=True)
    by_column = by_row[across]
    parts = by_row, column, _starts(row, n_out), by_column, row[across], _starts(column[across], n_in)
    return Orders(*(part.int() for part in parts))


class ConvOrders(NamedTuple):
    """The same of a convolution, whose columns are the channels of every phase of the stride, one phase after another.

    The pixels of x, padding included, fall into stride[0] * stride[1] phases, each of every stride-th line and column;
    a tap sees one phase alone, so many pixels of it further down and right: steps, (2, k), and steps_by_column.
    """

    by_row: Tensor
    columns: Tensor
    steps: Tensor
    row_starts: Tensor
    by_column: Tensor
    row_by_column: Tensor
    steps_by_column: Tensor
    column_starts: Tensor


def conv_orders(
    index: Tensor, shape: tuple[int, ...], groups: int, stride: tuple[int, ...], dilation: tuple[int, ...]
) -> ConvOrders:
    """Of S with nonzeros at the flat index: (k,), of a weight (n_out, C / groups, *kernel) of two axes."""
    index, by_row = index.sort()
    n_out, width, *kernel = shape
    tap, row = index % math.prod(kernel), index // math.prod(shape[1:])
    channel = row // (n_out // groups) * width + index // math.prod(kernel) % width
    down, right = tap // kernel[1] * dilation[0], tap % kernel[1] * dilation[1]
    column = (down % stride[0] * stride[1] + right % stride[1]) * width * groups + channel
    steps = torch.stack([down // stride[0], right // stride[1]])
    across = torch.argsort(column, stable=True)
    starts = _starts(row, n_out), _starts(column[across], math.prod(stride) * width * groups)
    parts = by_row, column, steps, starts[0], by_row[across], row[across], steps[:, across], starts[1]
    return ConvOrders(*(part.int().contiguous() for part in parts))


def _starts(places: Tensor, n: int) -> Tensor:
    return torch.searchsorted(places, torch.arange(n + 1, device=places.device))
