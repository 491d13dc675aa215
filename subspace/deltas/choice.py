"""Which deltas a base computes with at the moment, and what they add to the outputs of its linear layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from subspace.deltas.reader import Delta, Form, Part

ALONE_ABOVE = 1 << 14  # numbers of theta times rows of x a delta, above which the product of one beats the gathered one


class Group(NamedTuple):
    """Rows of a batch with deltas of one form. rows: (n,); thetas: (n, all). same: whether all have one delta."""

    form: Form
    rows: Tensor
    thetas: Tensor
    same: bool

    def product(self, part: Part, x: Tensor) -> Tensor:
        """x_i (U theta_i)^T of its rows: (batch, ..., n_in) -> (n, ..., n_out)."""
        thetas, mine = part.of(self.thetas), x[self.rows]
        return part.embedding.linear(thetas[0], mine) if self.same else part.embedding.linear_each(thetas, mine)

    def shift(self, part: Part, y: Tensor) -> Tensor:
        """U theta_i of a bias, for every row of y: (batch, ..., n_out) -> (n, ..., n_out)."""
        shifts: Tensor = torch.func.vmap(part.embedding)(part.of(self.thetas))
        return shifts.reshape(len(shifts), *(1 for _ in y.shape[1:-1]), -1).expand(len(shifts), *y.shape[1:])


def grouped(deltas: Sequence[Delta | None], position: int) -> list[Group]:
    """The deltas of the rows of a batch, those of one form together; None adds nothing.

    position: how many rows of x stand in one of the batch, as tokens do; more of them speak for each delta alone.
    """
    rows: dict[tuple[int, int], list[int]] = {}
    for row, delta in enumerate(deltas):
        if delta is not None:
            alone = position * len(delta.theta) > ALONE_ABOVE
            rows.setdefault((id(delta.form), id(delta) if alone else 0), []).append(row)
    groups = []
    for places in rows.values():
        found = [delta for row in places if (delta := deltas[row]) is not None]
        same = all(delta is found[0] for delta in found)
        thetas = found[0].theta.unsqueeze(0) if same else torch.stack([delta.theta for delta in found])
        groups.append(Group(found[0].form, torch.tensor(places), thetas.expand(len(found), -1), same))
    return groups


class Choice:
    """deltas: added to every row. each: to the rows of a batch, each its own; at most one of the two is not empty."""

    def __init__(self) -> None:
        self.deltas: tuple[Delta, ...] = ()
        self.each: tuple[Delta | None, ...] = ()
        self._groups: dict[tuple[int, torch.device], list[Group]] = {}

    def __reduce__(self) -> tuple[type[Choice], tuple[()]]:
        """A copy of a base, which has these, has no deltas: nobody could take them off it again."""
        if self.deltas or self.each:
            raise TypeError(
                "a base must have no delta in use when it is copied or pickled: call use() before, or merge"
            )
        return Choice, ()

    def set(self, deltas: Sequence[Delta] = (), each: Sequence[Delta | None] = ()) -> None:
        """Compute with these from now on."""
        self.deltas, self.each = tuple(deltas), tuple(each)
        self._groups.clear()

    def groups(self, x: Tensor) -> list[Group]:
        """Those of the rows of x, which must be one for each of `each`."""
        if x.ndim < 2 or len(x) != len(self.each):
            raise ValueError(f"x must have a first axis of {len(self.each)}, a row for each name, got {tuple(x.shape)}")
        key = x.shape[1:-1].numel(), x.device
        if key not in self._groups:
            self._groups[key] = [
                group._replace(rows=group.rows.to(x.device), thetas=group.thetas.to(x.device))
                for group in grouped(self.each, key[0])
            ]
        return self._groups[key]


class Beside:
    """A forward hook of a linear layer: adds to its output what the chosen deltas say of its weight and its bias."""

    def __init__(self, choice: Choice, prefix: str) -> None:
        self.choice = choice
        self.weight, self.bias = (f"{prefix}.{name}".lstrip(".") for name in ("weight", "bias"))

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor) -> Tensor:
        choice = self.choice
        if not (choice.deltas or choice.each):
            return y
        x = args[0] if args else kwargs["input"]
        for form, theta in choice.deltas:
            if (part := form.get(self.weight)) is not None:
                y = y + part.embedding.linear(part.of(theta), x).to(y.dtype)
            if (part := form.get(self.bias)) is not None:
                y = y + part.embedding(part.of(theta)).to(y.dtype)
        for group in choice.groups(x) if choice.each else ():
            if (part := group.form.get(self.weight)) is not None:
                y = y.index_add(0, group.rows, group.product(part, x).to(y.dtype))
            if (part := group.form.get(self.bias)) is not None:
                y = y.index_add(0, group.rows, group.shift(part, y).to(y.dtype))
        return y
