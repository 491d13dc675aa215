"""What recipes are made of: a start of every tensor, a choice of U, and registering all tensors or none."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from subspace.embeddings import Embedding, Sparse
from subspace.methods.budgets import Budget, entries, epl
from subspace.methods.groups import Groups, spread
from subspace.methods.prune import supports
from subspace.methods.saliency import Objective, Saliency, replaced, valued
from subspace.methods.select import Supports, warn_empty
from subspace.offsets import Offset, Zero
from subspace.parametrization import SubspaceParametrization, check, register
from subspace.random import Key
from subspace.targets import Selection, targets

Start = tuple[Offset, Embedding, Tensor | None]  # d, U and the first theta, None for the point nearest to the weight


class Recipe(Protocol):
    """What every recipe with a sparse U takes.

    U is random, divided by `budget` (EPL by default); or, given an objective, chosen at the recipe's first w by
    `saliency` (the recipe's docstring names its own), from all tensors together unless there is a budget.
    """

    def __call__(
        self,
        model: nn.Module,
        *,
        density: float | None = None,
        dim: int | None = None,
        seed: int = 0,
        budget: Budget | None = None,
        groups: Groups | None = None,
        objective: Objective | None = None,
        saliency: Saliency | None = None,
        include: Selection | None = None,
        exclude: Selection | None = None,
    ) -> nn.Module: ...


def sparse(default: Saliency) -> Callable[[Callable[[Tensor, Sparse, Key], Start]], Recipe]:
    """Makes the recipe whose tensors are start(weight, U, key), U sparse; `default` is its saliency."""

    def make(start: Callable[[Tensor, Sparse, Key], Start]) -> Recipe:
        def recipe(
            model: nn.Module,
            *,
            density: float | None = None,
            dim: int | None = None,
            seed: int = 0,
            budget: Budget | None = None,
            groups: Groups | None = None,
            objective: Objective | None = None,
            saliency: Saliency | None = None,
            include: Selection | None = None,
            exclude: Selection | None = None,
        ) -> nn.Module:
            weights = {q: w for q, (_, _, w) in targets(model, include, exclude).items()}
            keys = {q: Key(seed).fold(q) for q in weights}
            total = entries(sum(w.numel() for w in weights.values()), density, dim)
            if objective is None:
                counts = dict(zip(weights, (budget or epl)([w.shape for w in weights.values()], total), strict=True))
                warn_empty(counts)
                U = {q: _random(w, counts[q], keys[q].fold("U"), groups) for q, w in weights.items()}
            else:
                valued(weights)
                first = {
                    q: _first(w, start(w, Sparse(w, index=torch.arange(w.numel())), keys[q]))
                    for q, w in weights.items()
                }
                chosen = narrowed(saliency or default, include, exclude)
                with replaced(weights, first):
                    kept = supports(model, chosen, objective, dim=total, budget=budget, groups=groups)
                U = {q: Sparse(w, index=kept[q]) for q, w in weights.items()}
            return register_all(model, {q: start(w, U[q], keys[q]) for q, w in weights.items()})

        recipe.__name__, recipe.__qualname__, recipe.__doc__ = start.__name__, start.__name__, start.__doc__
        return recipe

    return make


def zeros(weight: Tensor, dim: int) -> Tensor:
    """Where a theta starts: on the weight's device or, as it has values, on the CPU for one on meta."""
    return torch.zeros(dim, dtype=weight.dtype, device=home(weight))


def home(weight: Tensor) -> torch.device:
    """The device of what goes with the weight and has values."""
    return torch.device("cpu") if weight.is_meta else weight.device


def register_all(model: nn.Module, starts: dict[str, Start]) -> nn.Module:
    """Register every tensor, once all of them have passed the checks."""
    modules = dict(model.named_modules())
    owners = {q: (modules[q.rpartition(".")[0]], q.rpartition(".")[2]) for q in starts}
    for q, (offset, embedding, _) in starts.items():
        check(*owners[q], SubspaceParametrization(offset, embedding))
    for q, (offset, embedding, theta) in starts.items():
        register(*owners[q], offset, embedding, theta)
    return model


def keep(model: nn.Module, kept: Supports) -> nn.Module:
    """d = 0, U = what is kept, theta = the weights kept."""
    weights = dict(model.named_parameters())
    return register_all(model, {q: (Zero(weights[q]), Sparse(weights[q], index=i), None) for q, i in kept.items()})


def narrowed(saliency: Saliency, include: Selection | None, exclude: Selection | None) -> Saliency:
    """The saliency of the tensors chosen; one that knows of no choice is left as it is where there is none."""
    given = {"include": include, "exclude": exclude}
    return partial(saliency, **{name: value for name, value in given.items() if value is not None})


def _random(weight: Tensor, k: int, key: Key, groups: Groups | None) -> Sparse:
    if groups is None:
        return Sparse(weight, k, key=key)
    scores = torch.from_numpy(key.uniform(weight.numel()))
    return Sparse(weight, index=spread(scores, k, groups(weight.shape)))


def _first(weight: Tensor, start: Start) -> Tensor:
    """The first w of a start."""
    offset, embedding, theta = start
    with torch.no_grad():
        return weight if theta is None else offset() + embedding(theta)
