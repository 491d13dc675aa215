"""Which copies there are of what can move: one that misses a move, and is then written to as by an average, is refused.

Its theta would hold the numbers of other places. A copy that has been used with gradients trains by itself, and one
that was loaded or assigned is what it was told to be: neither is a copy any longer.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor

from subspace._base.sharded import is_sharded


class Missed(NamedTuple):
    """theta as it was when a move was missed; values: its numbers, as writes through `.data` count no versions."""

    version: int
    values: Tensor

    @classmethod
    def of(cls, theta: Tensor) -> Missed:
        return cls(theta._version, _own(theta).clone())

    def was_written(self, theta: Tensor) -> bool:
        """Whether somebody has written to theta since; on the meta device nobody can."""
        now = _own(theta)
        if theta._version != self.version or now.is_meta:
            return not now.is_meta
        values = self.values.to(now)
        return not bool(((now == values) | now.isnan() & values.isnan()).all())


def _own(theta: Tensor) -> Tensor:
    """The numbers that this process has of it."""
    shared: Any = theta.detach()
    own: Tensor = shared.to_local() if is_sharded(theta) else shared
    return own


class Lineage:
    """The copies of one theta with its U, and whether it is a copy itself; a copy or pickle of this is empty."""

    def __init__(self) -> None:
        self._copies: weakref.WeakSet[Lineage] = weakref.WeakSet()
        self._theta: weakref.ref[Tensor] | None = None  # of a copy
        self._missed: Missed | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Lineage:
        return Lineage()

    def __reduce__(self) -> tuple[type[Lineage], tuple[()]]:
        return Lineage, ()

    def add(self, copy: Lineage, theta: Tensor) -> None:
        """Remember a copy, just made, by its theta."""
        copy._theta = weakref.ref(theta)
        if self._missed is not None:
            mine = None if self._theta is None else self._theta()
            written = mine is None or self._missed.was_written(mine)
            missed = Missed.of(theta)
            copy._missed = missed._replace(version=-1) if written else missed
        self._copies.add(copy)

    def move(self, followers: Collection[Lineage]) -> None:
        """Let the copies know of a move, all but those that follow it."""
        for copy in self._copies:
            theta = None if copy._theta is None else copy._theta()
            if theta is not None and copy not in followers:
                copy._missed = copy._missed or Missed.of(theta)
                copy.move(followers)

    def end(self) -> None:
        """Be no copy any longer."""
        self._theta = self._missed = None

    def check(self, theta: Tensor) -> None:
        """Raise RuntimeError if theta is that of a copy that was written to after a move that it missed."""
        if self._theta is None or torch.compiler.is_compiling() or self._theta() is not theta:
            return
        if self._missed is not None and self._missed.was_written(theta):
            raise RuntimeError(
                "a copy of a model must move with it to be an average of it, got one that was written to after a move: "
                "give it to the mover's `follow`, or copy the model anew"
            )
        if theta.requires_grad and torch.is_grad_enabled():
            self.end()
