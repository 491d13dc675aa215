"""Iterative magnitude pruning (Frankle and Carbin, "The lottery ticket hypothesis", ICLR 2019)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from subspace._base.qualified import owner_of
from subspace._base.selection import Selection, targets
from subspace.embeddings import Sparse
from subspace.methods.budgets import entries, exact
from subspace.methods.coefficients import BasisRule, analyse, bases_of, embedding
from subspace.methods.processes import Group, require_same, together
from subspace.methods.ranking import Supports, choose, require_finite, warn_empty
from subspace.methods.saliencies.base import Scores, require_values
from subspace.offsets import Zero
from subspace.parametrization import register


class LotteryTicket:
    """Train, prune a fraction of what remains by |w| over all tensors together, rewind, repeat.

    The rewinding point is the model as it is given: at initialization, or after some steps of training (Frankle et al.
    2020). Every round trains a fresh copy of it, biases and norms included, with w = U theta, so the model itself is
    never touched.

    Args:
        model: At the rewinding point.
        train: train(model) trains its argument in place and makes its own optimizer: dim shrinks every round.
        fraction: Pruned each round, rounded up; 0.2 takes 21 rounds to 0.92 % and 42 to 0.0085 %.
        include: Which tensors, as of `targets`.
        exclude: Which tensors not, as of `targets`.
        basis: weight -> a `Transform`, as `embeddings.DCT`: its coefficients are pruned and rewound in place of the
            weights, those of the weight at the rewinding point.
        group: The processes that train this model together, as of a `Mover`: each round must leave them the same.

    Raises:
        ValueError: If fraction is not in (0, 1), and as `targets`.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Callable[[nn.Module], object],
        *,
        fraction: float = 0.2,
        include: Selection | None = None,
        exclude: Selection | None = None,
        basis: BasisRule | None = None,
        group: Group = "auto",
    ) -> None:
        if not 0 < fraction < 1:
            raise ValueError(f"fraction must be in (0, 1), got {fraction}")
        chosen = targets(model, include, exclude)
        weights = {name: target.weight for name, target in chosen.items()}
        require_values(weights)
        self.supports: Supports = {name: torch.arange(w.numel(), device=w.device) for name, w in weights.items()}
        self.bases = bases_of(weights, basis, {name: target.layout for name, target in chosen.items()})
        self.numel = self.dim
        self.start, self.train, self.fraction = copy.deepcopy(model), train, fraction
        self.rounds, self.group = 0, group

    @property
    def dim(self) -> int:
        """How many weights remain."""
        return sum(map(len, self.supports.values()))

    def ticket(self) -> nn.Module:
        """A copy of the model at the rewinding point, with what is pruned so far gone from it."""
        model = copy.deepcopy(self.start)
        for name, index in self.supports.items() if self.rounds else ():  # the first round trains the plain model
            module, last = owner_of(model, name)
            weight = getattr(module, last)
            basis = copy.deepcopy(self.bases.get(name))
            register(module, last, Zero(weight), embedding(Sparse(weight, index=index), basis), model=model)
        return model

    def prune(self, dim: int | None = None) -> None:
        """One round: train the ticket, and keep its `dim` largest weights, by default all but the fraction.

        Raises ValueError if dim is more than remains, FloatingPointError naming tensor and round where a trained
        weight is not finite, RuntimeError where processes would keep others; the rounds so far are then as they were.
        """
        dim = self._left() if dim is None else dim
        if not 1 <= dim <= self.dim:
            raise ValueError(f"dim must be in [1, {self.dim}], got {dim}")
        model = self.ticket()
        self.train(model)
        with torch.no_grad():
            trained = {name: getattr(*owner_of(model, name)) for name in self.supports}
            scores: Scores = {name: analyse(w, self.bases.get(name)).abs() for name, w in trained.items()}
        require_finite(scores, f" in round {self.rounds + 1}")
        kept = choose(scores, dim, None, None, self.supports)
        device = next(iter(kept.values())).device
        require_same(kept, f"what round {self.rounds + 1} keeps", together(self.start, self.group), device)
        self.supports = kept
        self.rounds += 1

    def run(self, density: float | None = None, *, dim: int | None = None) -> nn.Module:
        """Rounds until dim = round(density N) weights remain, the last one as small as it takes; then the ticket."""
        total = entries(self.numel, density, dim)
        while self.dim > total:
            self.prune(max(total, self._left()))
        warn_empty({name: len(index) for name, index in self.supports.items()})
        return self.ticket()

    def _left(self) -> int:
        """What remains after a round."""
        return int((1 - exact(self.fraction)) * self.dim)

    def state_dict(self) -> dict[str, Any]:
        """All that the rounds so far have come to, the rewinding point included: tensors and numbers."""
        return {"rounds": self.rounds, "supports": dict(self.supports), "start": self.start.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.rounds, self.supports = int(state["rounds"]), dict(state["supports"])
        self.start.load_state_dict(state["start"])
