"""S in the two orders in which the kernels read it: the nonzeros of each output, and those of each input."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Orders(NamedTuple):
    """All int32, and none of a size that depends on where the nonzeros are: a captured graph can read them again.

    columns: (k,), of each nonzero. row_starts: (n_out + 1,), where in it each output begins. by_column, row_by_column:
    (k,), of the nonzeros by input: their places, and outputs. column_starts: (n_in + 1,), where each input begins.
    """

    columns: Tensor
    row_starts: Tensor
    by_column: Tensor
    row_by_column: Tensor
    column_starts: Tensor


def orders(index: Tensor, n_out: int, n_in: int) -> Orders:
    """Of S with nonzeros at the flat, sorted index: (k,), of an (n_out, n_in) matrix."""
    row = index // n_in
    column = index - row * n_in
    by_column = torch.argsort(column, stable=True)
    parts = column, _starts(row, n_out), by_column, row[by_column], _starts(column[by_column], n_in)
    return Orders(*(part.int() for part in parts))


def _starts(places: Tensor, n: int) -> Tensor:
    return torch.searchsorted(places, torch.arange(n + 1, device=places.device))
