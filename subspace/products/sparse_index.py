"""The nonzeros of S in the orders that products want them in, kept for as long as their index is.

An index may be in any order, that of theta: what is kept of it leads from there to the order of a product.

The products are torch's embedding bags: weighted sums of the rows of a table, which holds a row for each column of S.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from subspace._base.index import check, is_sorted

GATHER_BELOW = 8  # numbers in a row of a table, below which gathering beats the bags' gradient

Made = TypeVar("Made")


class PerTensor:
    """Something for each tensor, until it is gone: a WeakTensorKeyDictionary whose look-ups take less time."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[weakref.ref[Tensor], Any]] = {}

    def get(self, tensor: Tensor) -> Any:
        """What was set for the tensor, or None."""
        found = self._held.get(id(tensor))
        return None if found is None or found[0]() is not tensor else found[1]

    def __setitem__(self, tensor: Tensor, value: Any) -> None:
        key, held = id(tensor), self._held
        held[key] = weakref.ref(tensor, lambda _: held.pop(key, None)), value


_made = PerTensor()
_checked = PerTensor()


class Bags(NamedTuple):
    """S in both orders, int32: row and column (k,), where each row starts; by column: slots, rows, starts.

    Values and their gradients are by slot. by_row: the slots by row; None where that is their order.
    """

    row: Tensor
    column: Tensor
    row_starts: Tensor
    by_column: Tensor
    row_by_column: Tensor
    column_starts: Tensor
    by_row: Tensor | None

    def rows(self, values: Tensor) -> Tensor:
        """The values by row: (k,) -> (k,)."""
        return values if self.by_row is None else values.index_select(0, self.by_row)

    def forward(self, table: Tensor, values: Tensor) -> Tensor:
        """S table: (columns, n) -> (rows, n)."""
        return _bag(table, self.column, self.row_starts, self.rows(values))

    def adjoint(self, table: Tensor, values: Tensor) -> Tensor:
        """S^T table: (rows, n) -> (columns, n)."""
        return _bag(table, self.row_by_column, self.column_starts, values[self.by_column])

    def dots(self, gy: Tensor, x: Tensor) -> Tensor:
        """<gy[row_j], x[column_j]>: (rows, n), (columns, n) -> (k,)."""
        if x.shape[1] < GATHER_BELOW:
            found = (gy.index_select(0, self.row) * x.index_select(0, self.column)).sum(1)
        else:
            found = torch.ops.aten._embedding_bag_per_sample_weights_backward(
                gy, x, self.column, self.row_starts, self.row, 0
            )
        return found if self.by_row is None else torch.empty_like(found).index_copy_(0, self.by_row.long(), found)


def _bag(table: Tensor, index: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    bag: Tensor = torch.embedding_bag(table, index, starts, False, 0, False, weights)[0]
    return bag


def in_order(row: Tensor, column: Tensor, n_rows: int, n_columns: int) -> Bags:
    """The bags of the matrix with nonzeros at (row, column): (k,) each, by slot."""
    by_row = sorting(row * n_columns + column)
    if by_row is not None:
        row, column = row[by_row], column[by_row]
    across = torch.argsort(column, stable=True)
    device = row.device
    row_starts = torch.searchsorted(row, torch.arange(n_rows, device=device))
    column_starts = torch.searchsorted(column[across], torch.arange(n_columns, device=device))
    by_column = across if by_row is None else by_row[across]
    parts = row, column, row_starts, by_column, row[across], column_starts, by_row
    return Bags(*(None if part is None else part.int() for part in parts))  # type: ignore[arg-type]


def sorting(index: Tensor) -> Tensor | None:
    """The slots in the order of their places, int64; None where that is their order already.

    On a GPU it is never None: a graph captured before an index moved reads the slots from then on.
    """
    return None if index.device.type == "cpu" and is_sorted(index) else index.argsort()


def cached_per_index(index: Tensor, make: Callable[..., Made], *arguments: object) -> Made:
    """make(index, *arguments), kept until the index is gone, and made anew once it or the arguments are others.

    Anew in place, where it is tensors of the same shapes: a captured CUDA graph goes on to read what it has read.
    """
    if index.is_inference():  # which counts no versions
        return make(index, *arguments)
    if (held := _made.get(index)) is None:
        _made[index] = held = {}
    wanted, found = (version(index), arguments), held.get(make)
    if found is None or found[0] != wanted:
        with torch.inference_mode(False):
            made = make(index, *arguments)
        if found is not None and found[0][1] == arguments:
            made = _in_place(found[1], made)
        held[make] = found = wanted, made
    return found[1]  # type: ignore[no-any-return]


def renew(index: Tensor) -> None:
    """Make what is kept for an index anew, right after it was written to, for graphs that no longer ask."""
    for make, ((_, arguments), _) in list((_made.get(index) or {}).items()):
        cached_per_index(index, make, *arguments)


def _in_place(old: Any, new: Any) -> Any:
    """The old tuple of tensors with the values of the new one; the new one, where it is not such or of other shapes."""
    if not (isinstance(new, tuple) and all(isinstance(t, Tensor) for t in (*old, *new))):
        return new
    if [t.shape for t in old] != [t.shape for t in new]:
        return new
    for t, value in zip(old, new, strict=True):
        t.copy_(value)
    return old


Version = tuple[int, int, int]


def checked(index: Tensor, k: int, size: int) -> Version | None:
    """Raise ValueError unless the index holds k distinct places in range(size); looked at once for a version.

    Every product does, by whatever route: compiled kernels use an index as it is, and anyone can write to it. Returns
    the version, None of an index that counts none.
    """
    if index.shape[:1] != (k,):
        raise ValueError(f"index must have a place for each of {k} values, got {len(index)}")
    if index.is_inference():
        check(index, size)
        return None
    now = version(index)
    if _checked.get(index) != (now, size):
        check(index, size)
        _checked[index] = now, size
    return now


def version(index: Tensor) -> Version:
    """What changes when the index is written to, given another storage, or resized."""
    return index._version, index.data_ptr(), index.shape[0]


def of_matrix(index: Tensor, n_out: int, n_in: int) -> Bags:
    """The bags of S with nonzeros at the flat index of a matrix, cached."""
    return cached_per_index(index, _of_matrix, n_out, n_in)


def _of_matrix(index: Tensor, n_out: int, n_in: int) -> Bags:
    check(index, n_out * n_in)
    row = index // n_in
    return in_order(row, index - row * n_in, n_out, n_in)
