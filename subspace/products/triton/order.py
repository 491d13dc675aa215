"""S in the two orders in which the kernels read it: the nonzeros of each output, and those of each input."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Orders(NamedTuple):
    """All int32, and none of a size that depends on where the nonzeros are: a captured graph can read them again.

    column: (k,), of each nonzero. row_starts: (n_out + 1,), where in it each output begins. row_order: (n_out,), the
    outputs by falling number of nonzeros. by_column, row_by_column: (k,), of the nonzeros by input: places, and
    outputs. column_starts, column_order: as of the outputs.
    """

    column: Tensor
    row_starts: Tensor
    row_order: Tensor
    by_column: Tensor
    row_by_column: Tensor
    column_starts: Tensor
    column_order: Tensor


def orders(index: Tensor, n_out: int, n_in: int) -> Orders:
    """Of S with nonzeros at the flat, sorted index: (k,), of an (n_out, n_in) matrix."""
    row = index // n_in
    column = index - row * n_in
    by_column = torch.argsort(column, stable=True)
    row_starts, column_starts = _starts(row, n_out), _starts(column[by_column], n_in)
    order = (torch.argsort(starts.diff(), descending=True, stable=True) for starts in (row_starts, column_starts))
    row_order, column_order = order
    parts = column, row_starts, row_order, by_column, row[by_column], column_starts, column_order
    return Orders(*(part.int() for part in parts))


def _starts(places: Tensor, n: int) -> Tensor:
    return torch.searchsorted(places, torch.arange(n + 1, device=places.device))
