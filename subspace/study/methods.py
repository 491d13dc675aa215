"""The methods a study compares: one line each, and the only place where the study knows them.

A new method is one line in `METHODS`: its name, its label, and what it does to a model at a density and a seed. A
method whose steps are slower than ordinary training's says so in `cost`, which only orders the runs and the time left.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from subspace import budgets, recipes


@dataclass(frozen=True)
class Method:
    """A way to re-parametrize a model in place; `cost(density)` is the time of a run in those of ordinary training."""

    label: str
    apply: Callable[[nn.Module, float, int], nn.Module]
    cost: Callable[[float], float] = lambda density: 1.0
    has_density: bool = True


def _at(recipe: Callable[..., nn.Module], **options: object) -> Callable[[nn.Module, float, int], nn.Module]:
    return lambda model, density, seed: recipe(model, density=density, seed=seed, **options)


METHODS = {
    "ordinary": Method("ordinary (dense)", lambda model, *_: recipes.ordinary(model), has_density=False),
    "random_pruning_uniform": Method("random pruning, uniform", _at(recipes.random_pruning, budget=budgets.uniform)),
    "random_pruning_epl": Method("random pruning, EPL", _at(recipes.random_pruning, budget=budgets.epl)),
    "dctps": Method("DCTpS, EPL", _at(recipes.dctps, budget=budgets.epl)),
    "freezenet": Method("FreezeNet (random), EPL", _at(recipes.freezenet, budget=budgets.epl)),
    "random_subspace": Method("random subspace", _at(recipes.random_subspace), cost=lambda density: 1 + 100 * density),
}


def method(name: str) -> Method:
    """The method called `name`; ValueError with the permitted names, and the nearest, where there is none."""
    if name in METHODS:
        return METHODS[name]
    near = difflib.get_close_matches(name, METHODS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"method must be one of {', '.join(METHODS)}, got {name!r}{hint}")
