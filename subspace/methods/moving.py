"""Dynamic sparse training: every delta_t steps, drop the smallest |theta| of each tensor and grow as many elsewhere.

U moves in place: theta stays the same Parameter, no optimizer need be made again, and every entry that stays keeps its
slot in theta and in all that is kept beside it. Costs O(dim) memory and, every delta_t steps, what growing costs.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from subspace._base.sharded import reshard
from subspace.methods.budgets import exact
from subspace.methods.followers import Follower, copies
from subspace.methods.optimizer_states import states_of
from subspace.methods.parts import Move, parts
from subspace.methods.processes import Group, require_same, together
from subspace.methods.ranking import Supports
from subspace.methods.saliencies.base import Objective
from subspace.parametrization import require_thetas

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


class Mover(abc.ABC):
    """Moves U in training: call `step` after every `optimizer.step()`; at multiples of delta_t before t_end it acts.

    A multiple t drops, in every tensor, the floor(fraction decay(t / t_end) dim) entries of smallest magnitude (those
    of S alone under a DirectSum: alpha stays), and grows as many among all the others, the dropped ones included: one
    that is grown again keeps its value and state, as in RigL's code; a new one takes the slot of a dropped one, and is
    0 with zeroed state. Tensors whose theta requires no gradient are left alone.

    What else keeps numbers of theta by slot has to follow: an average of weights that does not would mix those of
    different places. Processes that train one model move it alike: by gradients averaged over them, and not at all
    unless all have chosen the same places. Of a model that `fully_shard` has sharded, each process moves its part of
    theta and of what goes with it, and all of the places; make the mover afterwards, as the optimizer.

    Args:
        model: With a Sparse embedding of every registered tensor, alone or in a DirectSum.
        optimizer: Of the thetas.
        t_end: The step from which nothing moves.
        delta_t: Steps from one move to the next.
        fraction: Dropped at first.
        decay: t / t_end in [0, 1) -> the factor of the fraction.
        follow: Copies of the model that move with it, such as an AveragedModel, and mappings of tensors by the names
            of the model's Parameters; `follow` adds others later. In a slot that begins anew they take the model's
            value, 0.
        group: The processes that train this model together: by default those of its DistributedDataParallel, and
            without one all that there are; None for a process by itself.

    Raises:
        ValueError: If the model has no subspace, a theta is shared or not the optimizer's, a follower has other places
            than the model, or an argument is out of range.
        TypeError: If an embedding is not sparse.
    """

    def __init__(  # noqa: PLR0913
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        t_end: int,
        delta_t: int = 100,
        fraction: float = 0.3,
        decay: Decay = cosine,
        follow: Follower | Iterable[Follower] = (),
        group: Group = "auto",
    ) -> None:
        if delta_t < 1:
            raise ValueError(f"delta_t must be at least 1, got {delta_t}")
        if not 0 <= fraction <= 1:
            raise ValueError(f"fraction must be in [0, 1], got {fraction}")
        self.model, self.optimizer = model, optimizer
        self.t_end, self.delta_t, self.fraction, self.decay = t_end, delta_t, fraction, decay
        self.steps, self.group = 0, group
        reshard(model)
        require_thetas(model)
        self.parts = dict(parts(model))
        for part in self.parts.values():
            part.sparse.moves = True
        self.followers: list[Follower] = []
        thetas = [id(part.space.theta) for part in self.parts.values()]
        trained = {id(p) for each in optimizer.param_groups for p in each["params"]}
        for name, part in self.parts.items():
            if thetas.count(id(part.space.theta)) > 1:
                raise ValueError(f"theta must belong to one tensor to be moved, got that of {name}, which is shared")
            if part.space.theta.requires_grad and id(part.space.theta) not in trained:
                raise ValueError(f"optimizer must train every theta, got one without that of {name}")
        for follower in [follow] if isinstance(follow, nn.Module | Mapping) else follow:
            self.follow(follower)

    def follow(self, follower: Follower) -> None:
        """Let a copy of the model, or a mapping of tensors by its Parameters' names, move with it from now on.

        Raises ValueError if it has other tensors or places than the model.
        """
        for copy in copies(self.model, self.parts, follower).values():
            if copy.part is not None:
                copy.part.sparse.moves = True
        self.followers.append(follower)

    def step(self, objective: Objective | None = None) -> None:
        """Count one step and, if it is due, move U. objective: as for the saliencies, where growing needs one."""
        self.steps += 1
        if self.steps % self.delta_t or self.steps >= self.t_end:
            return
        reshard(self.model)
        fraction = exact(self.fraction) * exact(self.decay(self.steps / self.t_end))
        dropped, kept = {}, {}
        for name, part in self.parts.items():
            if part.space.theta.requires_grad and (count := int(fraction * part.sparse.dim)):
                dropped[name], kept[name] = part.smallest(count)
        counts = {name: len(slots) for name, slots in dropped.items()}
        grown = self.grow(kept, counts, objective) if kept else {}
        self._move({n: self.parts[n].plan(dropped[n], kept[n], places) for n, places in grown.items()})

    @torch.no_grad()
    def _move(self, moves: Mapping[str, Move]) -> None:
        """Write the moves of all tensors, or of none."""
        following = [copies(self.model, self.parts, follower) for follower in self.followers]
        planned = {f"{name} {what}": t for name, move in moves.items() for what, t in move._asdict().items()}
        device = next(iter(self.parts.values())).space.theta.device
        require_same(planned, f"the moves of step {self.steps}", together(self.model, self.group), device)
        states = {name: states_of(self.optimizer, self.parts[name].space.theta) for name in moves}
        for name, move in moves.items():
            part, theta = self.parts[name], self.parts[name].space.theta
            for kept in (theta,) if theta.grad is None else (theta, theta.grad):
                part.begin_anew(kept, move.slots)
            for state in states[name]:
                part.begin_anew(state.per_entry, move.slots, state.zero)
            followers = [found[name] for found in following]
            for follower in followers:
                follower.follow(part, move)
            part.write(move)
            part.lineage.move([follower.part.lineage for follower in followers if follower.part is not None])

    @abc.abstractmethod
    def grow(self, kept: Supports, counts: dict[str, int], objective: Objective | None) -> Supports:
        """Choose the sorted places to grow in each tensor: `counts` of them, and none of those kept.

        A tensor that is left out is not moved.
        """

    def cut(self) -> nn.Module:
        """Once training is over: nothing has to be taken out of theta. Returns the model."""
        return self.model

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs besides the states of the model and of the optimizer."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`, with the arguments of the mover that it is of."""
        self.steps = int(state["steps"])
