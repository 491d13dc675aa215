"""The sparse part of a tensor's theta: what of it can be moved, and how its entries keep their slots.

An entry of theta stays in its slot for as long as it lives, and a grown one takes the slot of one that is dropped. So
whatever else keeps numbers by slot, optimizers, averages or snapshots, never finds another weight's in their place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from subspace._base.index import fault
from subspace._base.lineage import Lineage
from subspace._base.sharded import fill, whole
from subspace.embeddings import Embedding
from subspace.methods.top import top
from subspace.parametrization import Subspace, subspaces
from subspace.products.sparse_index import renew


class Move(NamedTuple):
    """Of one tensor: the slots of the sparse part of theta that begin anew, and the places that they are now: (m,)."""

    slots: Tensor
    places: Tensor


@dataclass(frozen=True)
class Part:
    """A sparse embedding that can be moved, and where in its tensor's theta its entries start."""

    space: Subspace
    sparse: Embedding
    start: int

    @property
    def index(self) -> Tensor:
        """The place of every slot, which `write` changes."""
        return cast(Tensor, self.sparse.support())

    @property
    def lineage(self) -> Lineage:
        """Of the copies that have its places."""
        return self.space.parametrization.lineage

    def entries(self, per_entry: Tensor) -> Tensor:
        """The sparse part of theta, or of anything of theta's shape: a view."""
        return per_entry.detach()[self.start : self.start + self.sparse.dim]

    def begin_anew(self, per_entry: Tensor, slots: Tensor, zero: float = 0.0) -> None:
        """Set these slots of theta, or of anything of theta's shape, to 0, or to what stands for it there."""
        begins = torch.zeros(self.space.embedding.dim, dtype=torch.bool, device=slots.device)
        fill(per_entry.detach(), begins.index_fill(0, self.start + slots, True).to(per_entry.device), zero)

    def smallest(self, count: int) -> tuple[Tensor, Tensor]:
        """The slots of the `count` entries of smallest magnitude, by place, and the sorted places of all others.

        Of equal ones the last places are taken: slots, which tell of earlier moves, decide nothing.
        """
        order = self.index.argsort()
        large = top(self.entries(whole(self.space.theta))[order].abs(), self.sparse.dim - count)
        small = torch.ones_like(order, dtype=torch.bool).index_fill(0, large, False)
        return order[small], self.index[order[large]]

    def plan(self, dropped: Tensor, kept: Tensor, grown: Tensor) -> Move:
        """The grown places in the slots of dropped entries; of a dropped entry that is grown again nothing changes.

        Raises ValueError unless as many places are grown as slots are dropped, all of them apart from those kept.
        """
        why = fault(torch.cat([kept, grown]), self.sparse.shape.numel())
        if why or len(grown) != len(dropped):
            raise ValueError(f"{len(dropped)} distinct places must grow beside those kept, got {why or len(grown)}")
        places = self.index[dropped]
        return Move(dropped[~torch.isin(places, grown)], grown[~torch.isin(grown, places)])

    def write(self, move: Move) -> None:
        """Give the slots their new places."""
        self.index.index_copy_(0, *move)
        renew(self.index)


def parts(model: nn.Module) -> Iterator[tuple[str, Part]]:
    """The sparse part of every registered tensor, by qualified name.

    Raises ValueError if there is no registered tensor, TypeError if one has none or several.
    """
    spaces = list(subspaces(model))
    if not spaces:
        raise ValueError("model must have at least one registered subspace, got none")
    for name, space in spaces:
        beside = space.parametrization.embedding.parts()
        starts = accumulate((U.dim for U in beside), initial=0)
        sparse = [(U.sparse_part(), start) for U, start in zip(beside, starts, strict=False)]
        found = [Part(space, U, start) for U, start in sparse if U is not None]
        if len(found) != 1:
            label = space.parametrization.embedding.label()
            raise TypeError(f"{name} must have a Sparse embedding, alone or in a Basis or DirectSum, got {label}")
        yield name, found[0]
