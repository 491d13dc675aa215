"""Gradual magnitude pruning (Zhu and Gupta, "To prune, or not to prune", 2017): from dense to sparse while training.

Every delta_t steps all but the largest |theta| are pruned, ever more of them, and none returns. theta keeps its length,
as optimizers want it: what is pruned is 0 after every step, and is counted as trained and stored until `cut`. A step
costs O(numel), and every delta_t steps a selection among all entries.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from subspace._base.sharded import fill, reshard, whole
from subspace.methods.budgets import Budget, entries, uniform
from subspace.methods.optimizer_states import states_of
from subspace.methods.processes import Group, require_same, together
from subspace.methods.ranking import Supports, choose, require_finite, warn_empty
from subspace.parametrization import Subspace, register, require_thetas, require_whole, subspaces


class GradualPruning:
    """Prunes theta in training: call `step` after every `optimizer.step()`, and `cut` once at the end.

    At a multiple t of delta_t from t_start on, round(N p) numbers of theta remain, N of them all, with

        p = density + (1 - density) (1 - (t - t_start) / (t_end - t_start))^3,

    and from t_end on as many as asked for. With d = 0 and U = identity (`recipes.ordinary`) these are weights, with a
    `Transform` for U they are coefficients.

    Args:
        model: With an embedding of as many numbers as weights of every registered tensor.
        optimizer: Of the thetas.
        density: The fraction in (0, 1] that remains in the end; or give dim.
        dim: How many numbers of theta remain in the end.
        t_start: The step at which pruning starts.
        t_end: The step from which nothing more is pruned.
        delta_t: Steps from one pruning to the next.
        budget: How the total is divided among the tensors; by default the same density in each, as in the paper. None
            lets all compete.
        follow: Copies of the model that are pruned and cut with it, as averages; `follow` adds others later. (An
            average that does not follow is that of the dense weights, and not sparse.)
        group: The processes that train this model together, as of a `Mover`.

    Raises:
        TypeError: If not exactly one of density and dim is given.
        ValueError: If the model has no subspace, or one with fewer numbers than weights or a shared theta, or a
            follower has others, or an argument is out of range.
    """

    def __init__(  # noqa: PLR0913
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        density: float | None = None,
        *,
        dim: int | None = None,
        t_start: int = 0,
        t_end: int,
        delta_t: int = 100,
        budget: Budget | None = uniform,
        follow: nn.Module | Iterable[nn.Module] = (),
        group: Group = "auto",
    ) -> None:
        if delta_t < 1:
            raise ValueError(f"delta_t must be at least 1, got {delta_t}")
        if not 0 <= t_start < t_end:
            raise ValueError(f"t_start must be in [0, {t_end}), before t_end, got {t_start}")
        self.model, self.optimizer = model, optimizer
        self.t_start, self.t_end, self.delta_t, self.budget = t_start, t_end, delta_t, budget
        self.spaces = dict(subspaces(model))
        if not self.spaces:
            raise ValueError("model must have at least one registered subspace, got none")
        require_thetas(model)
        for name, space in self.spaces.items():
            if space.embedding.dim != space.shape.numel():
                wanted, got = space.shape.numel(), space.embedding.dim
                raise ValueError(f"{name} must have a theta of its {wanted} weights to be pruned, got {got} numbers")
        thetas = [id(space.theta) for space in self.spaces.values()]
        if shared := [name for name, space in self.spaces.items() if thetas.count(id(space.theta)) > 1]:
            raise ValueError(f"theta must belong to one tensor to be pruned, got that of {shared[0]}, which is shared")
        self.numel = sum(space.shape.numel() for space in self.spaces.values())
        self.dim, self.steps = entries(self.numel, density, dim), 0
        self.kept: Supports = {n: torch.arange(s.embedding.dim, device=s.theta.device) for n, s in self.spaces.items()}
        self.followers: list[nn.Module] = []
        self.group = group
        for follower in [follow] if isinstance(follow, nn.Module) else follow:
            self.follow(follower)

    def follow(self, follower: nn.Module) -> None:
        """Let a copy of the model be pruned and cut with it. Raises ValueError if it has other tensors."""
        self._spaces_of(follower)
        self.followers.append(follower)

    def _spaces_of(self, follower: nn.Module) -> dict[str, Subspace]:
        """By the order of the tensors: a wrapper, as AveragedModel, has other names."""
        spaces = [space for _, space in subspaces(follower)]
        wanted, got = ([tuple(s.shape) for s in some] for some in (self.spaces.values(), spaces))
        if wanted != got or any(space.embedding.dim != space.shape.numel() for space in spaces):
            raise ValueError(f"a follower must have the thetas of the model that it follows, got others, of {got}")
        return dict(zip(self.spaces, spaces, strict=True))

    def step(self, objective: object = None) -> None:
        """Count one step, prune if it is due, and keep what is pruned at 0. The objective is not used."""
        self.steps += 1
        reshard(self.model)
        if self.t_start <= self.steps and (self.steps % self.delta_t == 0 or self.steps == self.t_end):
            self._prune(self._remaining())
        self._mask()

    def _remaining(self) -> int:
        """How many numbers of theta remain at this step."""
        progress = min(1.0, (self.steps - self.t_start) / (self.t_end - self.t_start))
        return self.dim + round((self.numel - self.dim) * (1 - progress) ** 3)

    def _prune(self, total: int) -> None:
        if total >= sum(map(len, self.kept.values())):
            return
        scores = {name: whole(space.theta.detach()).abs().reshape(space.shape) for name, space in self.spaces.items()}
        require_finite(scores, f" in step {self.steps}")
        kept = choose(scores, total, self.budget, None, self.kept)
        group, device = together(self.model, self.group), next(iter(kept.values())).device
        require_same(kept, f"what step {self.steps} prunes", group, device)
        self.kept = kept
        warn_empty({name: len(index) for name, index in self.kept.items()}, stacklevel=4)

    @torch.no_grad()
    def _mask(self) -> None:
        """Set what is pruned to 0, with the optimizer's state of it, and followers'."""
        following = [self._spaces_of(follower) for follower in self.followers]
        states = {name: states_of(self.optimizer, space.theta) for name, space in self.spaces.items()}
        for name, space in self.spaces.items():
            index, theta = self.kept[name], space.theta
            if len(index) == len(theta):
                continue
            others = [spaces[name].theta for spaces in following]
            pruned = torch.ones(len(theta), dtype=torch.bool, device=index.device).index_fill(0, index, False)
            for per_entry, zero in (*((t, 0.0) for t in (theta, *others)), *states[name]):
                fill(per_entry, pruned.to(per_entry.device), zero)

    @torch.no_grad()
    def cut(self) -> nn.Module:
        """Take what is pruned out of theta, once training is over: U is sparse then, followers' too. Returns the model.

        Every theta is shorter then, so that another optimizer is needed to go on, and `structured` to be called again.

        Raises ValueError for a model that `fully_shard` has sharded: save it, and cut the whole one that is loaded.
        """
        require_whole(self.model, "to be cut")
        for spaces in (self.spaces, *map(self._spaces_of, self.followers)):
            for name, space in spaces.items():
                if len(self.kept[name]) < space.embedding.dim:
                    _cut(space, self.kept[name].to(space.theta.device))
        return self.model

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs besides the states of the model and of the optimizer."""
        return {"steps": self.steps, "kept": dict(self.kept)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`, with the arguments of the one that it is of."""
        self.steps, self.kept = int(state["steps"]), dict(state["kept"])


def _cut(space: Subspace, kept: Tensor) -> None:
    module, name, offset, theta = space.module, space.name, space.offset, space.theta
    needs, values = theta.requires_grad, theta.detach()[kept].clone()
    U = space.embedding.columns(kept)
    parametrize.remove_parametrizations(module, name)
    register(module, name, offset, U, values, dtype=values.dtype).theta.requires_grad_(needs)
