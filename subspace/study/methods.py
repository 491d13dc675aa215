"""The methods a study compares: one line each, and the only place where the study knows them.

A new method is one line in `METHODS`: its name, its label, the family it is drawn with, and what it does to a model in
a `Setting`. Its `options` are part of a run's configuration. A method whose steps are slower than ordinary training's
says so in `cost`, which only orders the runs and the time left. One of your own is a `Method` that a study names by
its import path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import Optimizer

from subspace import Key, budgets, methods, recipes
from subspace.methods import Mover
from subspace.study.locate import imported, nearest
from subspace.study.setting import Setting

Apply = Callable[[nn.Module, Setting], nn.Module]


@dataclass(frozen=True)
class Method:
    """A way to re-parametrize a model in place, and perhaps to move U while it trains.

    options: its own, by name, with the values they have unless a study says otherwise. from_dense: whether U is chosen
    at the dense network, which is held meanwhile. needs_data: whether it is chosen by data. cost(density): the time of
    an epoch in those of ordinary training.
    """

    label: str
    family: str
    apply: Apply
    options: Mapping[str, Any] = field(default_factory=dict)
    mover: Callable[[nn.Module, Optimizer, Setting], Mover] | None = None
    from_dense: bool = False
    needs_data: bool = False
    cost: Callable[[float], float] = lambda density: 1.0
    has_density: bool = True

    def completed(self, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options with those that are not given; ValueError, naming the method, for one that it does not have."""
        for option, value in options.items():
            if option not in self.options:
                known = ", ".join(sorted(self.options)) or "none"
                raise ValueError(f"options of {name} must be {known}, got {option!r}{nearest(option, self.options)}")
            expected = type(self.options[option])
            if not isinstance(value, (int, float) if expected in (int, float) else expected):
                raise ValueError(f"{option} of {name} must be such as {self.options[option]!r}, got {value!r}")
        return {**self.options, **options}


def _random(recipe: Callable[..., nn.Module], **more: object) -> Apply:
    return lambda model, s: recipe(model, **s.size, seed=s.seed, **more)


def _by_loss(recipe: Callable[..., nn.Module]) -> Apply:
    """U by a saliency of the loss on one batch; options beside `samples` are the recipe's."""

    def apply(model: nn.Module, s: Setting) -> nn.Module:
        options: dict[str, Any] = dict(s.options)
        return recipe(model, objective=s.loss(options.pop("samples")), **s.size, **options)

    return apply


def _freezenet_snip(model: nn.Module, s: Setting) -> nn.Module:
    return recipes.freezenet(model, **s.size, seed=s.seed, objective=s.loss(s.options["samples"]))


def _synflow(model: nn.Module, s: Setting) -> nn.Module:
    return recipes.synflow(model, s.flow(), **s.size, steps=int(s.options["steps"]))


def _imp(model: nn.Module, s: Setting) -> nn.Module:
    """The same fraction in every round, such that so many rounds reach the density; none is needed at density 1."""
    fraction = 1 - s.density ** (1 / s.options["rounds"])
    search = methods.LotteryTicket(model, s.fit, fraction=fraction or 0.5)
    s.resume(search)
    ticket = search.run(**s.size)
    return ticket if search.rounds else recipes.ordinary(ticket)


def _schedule(s: Setting) -> dict[str, Any]:
    """The options of a mover, whose t_end is a share of all steps here."""
    return {**s.options, "t_end": round(s.options["t_end"] * s.steps)}


def _set(model: nn.Module, optimizer: Optimizer, s: Setting) -> Mover:
    key = Key(s.seed).fold("SET")
    return methods.SET(model, optimizer, key=key, decay=methods.constant, **_schedule(s))


def _rigl(model: nn.Module, optimizer: Optimizer, s: Setting) -> Mover:
    return methods.RigL(model, optimizer, **_schedule(s))


RANDOM, SALIENCY, ROUNDS = "random support", "saliency, one shot", "saliency, in rounds"
TRAINED, COSINES, GAUSSIAN = "U from training", "DCT offset", "Gaussian offset"
# The papers' numbers, but for the length of these runs: a move every 8 steps in place of 100, and rounds of IMP that
# take more than 20 % at densities below 0.13.
BATCH = {"samples": 128}
SIXTY = {"samples": 128, "steps": 60}
MOVES = {"delta_t": 8, "fraction": 0.3, "t_end": 0.75}

METHODS = {
    "ordinary": Method("ordinary (dense)", "dense", lambda model, _: recipes.ordinary(model), has_density=False),
    "random_pruning_uniform": Method(
        "random pruning, uniform", RANDOM, _random(recipes.random_pruning, budget=budgets.uniform)
    ),
    "random_pruning_epl": Method("random pruning, EPL", RANDOM, _random(recipes.random_pruning, budget=budgets.epl)),
    "random_pruning_erk": Method("random pruning, ERK", RANDOM, _random(recipes.random_pruning, budget=budgets.erk)),
    "magnitude": Method("magnitude", SALIENCY, lambda model, s: recipes.magnitude(model, **s.size), from_dense=True),
    "snip": Method("SNIP", SALIENCY, _by_loss(recipes.snip), BATCH, from_dense=True, needs_data=True),
    "grasp": Method(
        "GraSP",
        SALIENCY,
        lambda model, s: recipes.grasp(model, s.balanced_loss(**s.options), **s.size),
        {"per_class": 10, "temperature": 200},
        from_dense=True,
        needs_data=True,
    ),
    "iterative_snip": Method(
        "Iterative SNIP", ROUNDS, _by_loss(recipes.iterative_snip), SIXTY, from_dense=True, needs_data=True
    ),
    "force": Method("FORCE", ROUNDS, _by_loss(recipes.force), SIXTY, from_dense=True, needs_data=True),
    "synflow": Method("SynFlow", ROUNDS, _synflow, {"steps": 100}, from_dense=True),
    "imp": Method("IMP, 9 rounds", TRAINED, _imp, {"rounds": 9}, from_dense=True, needs_data=True),
    "set": Method("SET, ERK", TRAINED, _random(recipes.set), MOVES, _set),
    "rigl": Method("RigL, ERK", TRAINED, _random(recipes.rigl), MOVES, _rigl),
    "dctps": Method("DCTpS, EPL", COSINES, _random(recipes.dctps, budget=budgets.epl)),
    "dctps_set": Method("DCTpS + SET, ERK", COSINES, _random(recipes.dctps_set), MOVES, _set),
    "dctps_rigl": Method("DCTpS + RigL, ERK", COSINES, _random(recipes.dctps_rigl), MOVES, _rigl),
    "freezenet": Method("FreezeNet (random), EPL", GAUSSIAN, _random(recipes.freezenet, budget=budgets.epl)),
    "freezenet_snip": Method("FreezeNet (SNIP)", GAUSSIAN, _freezenet_snip, BATCH, from_dense=True, needs_data=True),
    "random_subspace": Method(
        "random subspace", GAUSSIAN, _random(recipes.random_subspace), cost=lambda density: 1 + 100 * density
    ),
}
BASIC = ("ordinary", "random_pruning_uniform", "random_pruning_epl", "dctps", "freezenet", "random_subspace")


def method(name: str) -> Method:
    """The method called `name` or at that import path; ValueError with the names, and the nearest, if there is none."""
    if name in METHODS:
        return METHODS[name]
    if ":" not in name:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {name!r}{nearest(name, METHODS)}")
    found = imported(name, "method")
    if not isinstance(found, Method):
        raise ValueError(f"method must be a Method, got {type(found).__name__} at {name!r}")
    return found
