"""Dynamic sparse training: every delta_t steps, drop the smallest |theta| of each tensor and grow as many elsewhere.

U moves in place: the index, theta and the optimizer's state of every entry move together, so that theta stays the same
Parameter and no optimizer need be made again. Costs O(dim) memory and, every delta_t steps, what growing costs.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor, nn

from subspace.embeddings import Embedding
from subspace.methods.budgets import exact
from subspace.methods.ranking import Supports
from subspace.methods.saliencies.base import Objective
from subspace.methods.top import top
from subspace.parametrization import Subspace, subspaces
from subspace.products.sparse_index import renew

Decay = Callable[[float], float]  # t / t_end in [0, 1) -> the factor of the fraction to drop


def cosine(progress: float) -> float:
    """(1 + cos(pi t / t_end)) / 2."""
    return (1 + math.cos(math.pi * progress)) / 2


def linear(progress: float) -> float:
    """1 - t / t_end."""
    return 1 - progress


def constant(progress: float) -> float:
    """1."""
    return 1.0


@dataclass(frozen=True)
class Part:
    """A sparse embedding that can be moved, and where in its tensor's theta its entries start."""

    space: Subspace
    sparse: Embedding
    start: int

    @property
    def index(self) -> Tensor:
        """The places, which `move` writes."""
        return cast(Tensor, self.sparse.support())

    def entries(self, per_entry: Tensor) -> Tensor:
        """The sparse part of theta, or of anything of theta's shape: a view."""
        return per_entry.detach()[self.start : self.start + self.sparse.dim]

    @torch.no_grad()
    def move(self, index: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Make `index`, sorted, the places; what belongs to a place goes with it, a new one starts at 0."""
        old, theta = self.index, self.space.theta
        source = torch.searchsorted(old, index).clamp(max=len(old) - 1)
        stays = old[source] == index
        state = optimizer.state.get(theta, {}).values()
        of_theta = [t for t in (theta, theta.grad, *state) if isinstance(t, Tensor) and t.shape == theta.shape]
        for per_entry in map(self.entries, of_theta):
            per_entry.copy_(torch.where(stays, per_entry[source], 0))
        old.copy_(index)
        renew(old)


class Mover(abc.ABC):
    """Moves U in training: call `step` after every `optimizer.step()`; at multiples of delta_t before t_end it acts.

    A multiple t drops, in every tensor, the floor(fraction decay(t / t_end) dim) entries of smallest magnitude (those
    of S alone under a DirectSum: alpha stays), and grows as many among all the others, the dropped ones included: one
    that is grown again keeps its value and state, as in RigL's code; a new one is 0 with zeroed state. Tensors whose
    theta requires no gradient are left alone.

    Args:
        model: With a Sparse embedding of every registered tensor, alone or in a DirectSum.
        optimizer: Of the thetas.
        t_end: The step from which nothing moves.
        delta_t: Steps from one move to the next.
        fraction: Dropped at first.
        decay: t / t_end in [0, 1) -> the factor of the fraction.

    Raises:
        ValueError: If the model has no subspace, a theta is shared or not the optimizer's, or an argument is out of
            range.
        TypeError: If an embedding is not sparse.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        t_end: int,
        delta_t: int = 100,
        fraction: float = 0.3,
        decay: Decay = cosine,
    ) -> None:
        if delta_t < 1:
            raise ValueError(f"delta_t must be at least 1, got {delta_t}")
        if not 0 <= fraction <= 1:
            raise ValueError(f"fraction must be in [0, 1], got {fraction}")
        self.model, self.optimizer = model, optimizer
        self.t_end, self.delta_t, self.fraction, self.decay = t_end, delta_t, fraction, decay
        self.steps = 0
        self.parts = dict(_parts(model))
        for part in self.parts.values():
            part.sparse.moves = True
        thetas = [id(part.space.theta) for part in self.parts.values()]
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, part in self.parts.items():
            if thetas.count(id(part.space.theta)) > 1:
                raise ValueError(f"theta must belong to one tensor to be moved, got that of {name}, which is shared")
            if part.space.theta.requires_grad and id(part.space.theta) not in trained:
                raise ValueError(f"optimizer must train every theta, got one without that of {name}")

    def step(self, objective: Objective | None = None) -> None:
        """Count one step and, if it is due, move U. objective: as for the saliencies, where growing needs one."""
        self.steps += 1
        if self.steps % self.delta_t or self.steps >= self.t_end:
            return
        dropped = exact(self.fraction) * exact(self.decay(self.steps / self.t_end))
        kept, counts = {}, {}
        for name, part in self.parts.items():
            if part.space.theta.requires_grad and (count := int(dropped * part.sparse.dim)):
                magnitude = part.entries(part.space.theta).abs()
                kept[name], counts[name] = part.index[top(magnitude, part.sparse.dim - count)], count
        for name, grown in self.grow(kept, counts, objective).items() if kept else ():
            self.parts[name].move(torch.cat([kept[name], grown]).sort().values, self.optimizer)

    @abc.abstractmethod
    def grow(self, kept: Supports, counts: dict[str, int], objective: Objective | None) -> Supports:
        """Choose the sorted places to grow in each tensor: `counts` of them, and none of those kept.

        A tensor that is left out is not moved.
        """

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs besides the states of the model and of the optimizer."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`, with the arguments of the mover that it is of."""
        self.steps = int(state["steps"])


def _parts(model: nn.Module) -> Iterator[tuple[str, Part]]:
    spaces = list(subspaces(model))
    if not spaces:
        raise ValueError("model must have at least one registered subspace, got none")
    for name, space in spaces:
        parts = space.parametrization.embedding.parts()
        starts = accumulate((U.dim for U in parts), initial=0)
        found = [Part(space, U, start) for U, start in zip(parts, starts, strict=False) if U.support() is not None]
        if len(found) != 1:
            label = space.parametrization.embedding.label()
            raise TypeError(f"{name} must have a Sparse embedding, alone or in a DirectSum, got {label}")
        yield name, found[0]
