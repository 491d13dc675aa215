"""The sparse part S of x w^T, forward and both gradients, by torch's embedding bags.

A table holds a row for each column of S: a feature over the batch. Then S x is one bag of the table's rows for each row
of S, S^T gy the same with S transposed, and the gradient to a value the dot product of two rows. Tables are made in
pieces of at most 4 MB.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from subspace._base.dtypes import at_least_float32
from subspace.products.sparse_index import of_matrix
from subspace.products.weight import Weight

TABLE_SIZE = 1 << 20  # numbers in a table
MAX_ROW = 1 << 13  # numbers in a row of it; the bags are made for rows that stay in cache


def forward(x: Tensor, w: Weight, y: Tensor) -> None:
    """y += x S^T in place: (rows, n_in) -> (rows, n_out)."""
    bags, weights = of_matrix(w.index, *w.fans), w.values.to(at_least_float32(x.dtype))
    for part in _pieces_of(x, w):
        y[part] += bags.forward(_table(x[part]), weights).t().contiguous()


def backward(gy: Tensor, x: Tensor, w: Weight, gx: Tensor | None, gvalues: Tensor | None) -> None:
    """gx += gy S and gvalues += S's dot products, in place where given."""
    bags, weights = of_matrix(w.index, *w.fans), w.values.to(at_least_float32(x.dtype))
    for part in _pieces_of(x, w):
        table = _table(gy[part])
        if gvalues is not None:
            gvalues += bags.dots(table, _table(x[part]))
        if gx is not None:
            gx[part] += bags.adjoint(table, weights).t().contiguous()


def _pieces_of(x: Tensor, w: Weight) -> Iterator[slice]:
    return pieces(len(x), max(1, min(MAX_ROW, TABLE_SIZE // max(w.fans))))


def _table(rows: Tensor) -> Tensor:
    return rows.to(at_least_float32(rows.dtype)).t().contiguous()


def pieces(n: int, step: int) -> Iterator[slice]:
    """Slices of `step` that cover range(n)."""
    return (slice(first, first + step) for first in range(0, n, step))
