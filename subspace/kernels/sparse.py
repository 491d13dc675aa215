"""The sparse part S of a product, forward and both gradients, by torch's embedding bags: weighted sums of rows.

A table holds a row for each column of S: a feature over the batch. Then S x is one bag of the table's rows for each row
of S, S^T gy the same with S transposed, and the gradient to a value the dot product of two rows. Tables are made in
pieces of at most 4 MB. Both orders of S are kept for as long as its index is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from subspace.fixed import wide
from subspace.places import check

PIECE = 1 << 20  # numbers in a table
LONG = 1 << 13  # numbers in a row of it; the bags are made for rows that stay in cache
FEW = 8  # rows or pixels, below which gathering beats the bags' gradient

Made = TypeVar("Made")
_made = WeakTensorKeyDictionary()
_checked = WeakTensorKeyDictionary()


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


def in_order(row: Tensor, column: Tensor, n_rows: int, n_columns: int) -> Bags:
    """The bags of the matrix with nonzeros at (row, column): (k,) each, sorted by row."""
    by_column = torch.argsort(column, stable=True)
    columns = column[by_column]
    device = row.device
    row_starts = torch.searchsorted(row, torch.arange(n_rows, device=device))
    column_starts = torch.searchsorted(columns, torch.arange(n_columns, device=device))
    parts = row, column, row_starts, by_column, row[by_column], column_starts
    return Bags(*(part.int() for part in parts))


def kept(index: Tensor, make: Callable[..., Made], *arguments: object) -> Made:
    """make(index, *arguments), kept until the index is written to or gone."""
    if index.is_inference():  # which counts no versions
        return make(index, *arguments)
    wanted = (*_version(index), make, *arguments)
    found = _made.get(index)  # type: ignore[no-untyped-call]
    if found is None or found[0] != wanted:
        with torch.inference_mode(False):
            found = wanted, make(index, *arguments)
        _made[index] = found
    return found[1]  # type: ignore[no-any-return]


def check_once(index: Tensor, k: int, size: int) -> None:
    """Raise ValueError unless the index holds k sorted, distinct places in range(size); looked at once for a version.

    Every product does, by whatever route: compiled kernels use an index as it is, and anyone can write to it.
    """
    if len(index) != k:
        raise ValueError(f"index must have a place for each of {k} values, got {len(index)}")
    if index.is_inference():
        check(index, size)
        return
    wanted = (*_version(index), size)
    if _checked.get(index) != wanted:  # type: ignore[no-untyped-call]
        check(index, size)
        _checked[index] = wanted


def _version(index: Tensor) -> tuple[int, int, int]:
    """What changes when the index is written to, given another storage, or resized."""
    return index._version, index.data_ptr(), len(index)


def of_matrix(index: Tensor, n_out: int, n_in: int) -> Bags:
    """The bags of S with nonzeros at the flat index of a matrix, `kept`."""
    return kept(index, _of_matrix, n_out, n_in)


def _of_matrix(index: Tensor, n_out: int, n_in: int) -> Bags:
    check(index, n_out * n_in)
    row = index // n_in
    return in_order(row, index - row * n_in, n_out, n_in)


def forward(x: Tensor, values: Tensor, index: Tensor, shape: tuple[int, ...], y: Tensor) -> None:
    """y += x S^T in place: (rows, n_in) -> (rows, n_out)."""
    if len(values) == 0:
        return
    bags, weights = of_matrix(index, *shape), values.to(wide(x.dtype))
    for part in pieces(len(x), max(1, min(LONG, PIECE // max(shape)))):
        y[part] += bags.forward(_table(x[part]), weights).t().contiguous()


def backward(
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
    bags, weights = of_matrix(index, *shape), values.to(dtype)
    for part in pieces(len(x), max(1, min(LONG, PIECE // max(shape)))):
        table = _table(gy[part])
        if gvalues is not None:
            gvalues += bags.dots(table, _table(x[part]))
        if gx is not None:
            gx[part] += bags.adjoint(table, weights).t().contiguous()
    return gvalues


def _table(rows: Tensor) -> Tensor:
    return rows.to(wide(rows.dtype)).t().contiguous()


def pieces(n: int, step: int) -> Iterator[slice]:
    """Slices of `step` that cover range(n)."""
    return (slice(first, first + step) for first in range(0, n, step))
