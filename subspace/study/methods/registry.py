"""The methods a study compares: one line each, and the only place where the study knows them.

A new method is one line in `METHODS`: its name, its label, the family it is drawn with, and what it does to a model in
a `Setting`. Its `options` are part of a run's configuration. A method whose steps are slower than ordinary training's
says so in `cost`, which only orders the runs and the time left. One of your own is a `Method` that a study names by
its import path.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from subspace import Key, methods, recipes
from subspace.methods import Mover
from subspace.study.entries.lookup import imported, nearest
from subspace.study.methods.setting import Setting
from subspace.study.methods.variants import VALUES, Apply, by_loss, force, plus_sparse, random, shuffled, worded


@dataclass(frozen=True)
class Method:
    """A way to re-parametrize a model in place, and perhaps to move U while it trains.

    options: its own, by name, with the values they have unless a study says otherwise. values: those that an option may
    have, where they are few; `methods.variants` says what each is. authors: the usual values under the rule "authors",
    where they are others. from_dense: whether U is chosen
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
    values: Mapping[str, Sequence[str]] = field(default_factory=dict)
    authors: Mapping[str, Any] = field(default_factory=dict)

    def usual(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """The values that options have unless they are given, beside these."""
        return {**self.options, **(self.authors if options.get("rule") == "authors" else {})}

    def completed(self, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options with those that are not given; ValueError, naming the method, for one that it does not have."""
        for option, value in options.items():
            if option not in self.options:
                known = ", ".join(sorted(self.options)) or "none"
                raise ValueError(f"options of {name} must be {known}, got {option!r}{nearest(option, self.options)}")
            expected = type(self.options[option])
            if not isinstance(value, (int, float) if expected in (int, float) else expected):
                raise ValueError(f"{option} of {name} must be such as {self.options[option]!r}, got {value!r}")
            if option in self.values and value not in self.values[option]:
                known = ", ".join(map(repr, self.values[option]))
                raise ValueError(f"{option} of {name} must be one of {known}, got {value!r}")
        given = {o: float(value) if isinstance(self.options[o], float) else value for o, value in options.items()}
        return {**self.usual(given), **given}

    def named(self, options: Mapping[str, Any]) -> str:
        """The label, with those options that are not as ever: in the place of the usual value where the label has it.

        >>> METHODS["dctps"].named({"budget": "erk", "alpha": "fixed"})
        'DCTpS, ERK, alpha=fixed'
        """
        text, other = self.label, []
        for name, value in options.items():
            if (usual := self.usual(options).get(name)) != value:
                place = re.compile(rf"\b{re.escape(worded(usual))}\b")
                if place.search(text):
                    text = place.sub(worded(value), text)
                else:
                    other.append(f"{name}={worded(value)}")
        return ", ".join([text, *other])


def _freezenet_snip(model: nn.Module, s: Setting) -> nn.Module:
    return recipes.freezenet(model, **s.size, seed=s.seed, objective=s.loss(s.options["samples"]))


def _grasp(model: nn.Module, s: Setting) -> nn.Module:
    return recipes.grasp(model, s.balanced_loss(s.options["per_class"], s.options["temperature"]), **s.size)


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
    return {name: s.options[name] for name in MOVES} | {"t_end": round(s.options["t_end"] * s.steps)}


def _set(model: nn.Module, optimizer: Optimizer, s: Setting) -> Mover:
    key = Key(s.seed).fold("SET")
    return methods.SET(model, optimizer, key=key, decay=methods.constant, **_schedule(s))


def _rigl(model: nn.Module, optimizer: Optimizer, s: Setting) -> Mover:
    return methods.RigL(model, optimizer, **_schedule(s))


RANDOM, SALIENCY, ROUNDS = "random support", "saliency, one shot", "saliency, in rounds"
TRAINED, COSINES, GAUSSIAN = "U from training", "DCT offset", "Gaussian offset"
# The papers' numbers, but for the length of these runs: a move every 8 steps in place of 100, and rounds of IMP that
# take more than 20 % at densities below 0.13.
BATCH = {"samples": 128, "shuffle": False}
ROUNDS_OF_LOSS = BATCH | {"steps": 60, "loss": "cross_entropy"}
MOVES = {"delta_t": 8, "fraction": 0.3, "t_end": 0.75}
RULE = {"rule": "exact"}
START = RULE | {"init": "dense"}
OFFSET = RULE | {"offset": "dct", "gain": 1.0, "alpha": "trained", "alphas": ""}
EPL, ERK = {"budget": "epl"}, {"budget": "erk"}

METHODS = {
    "ordinary": Method("ordinary (dense)", "dense", lambda model, _: recipes.ordinary(model), has_density=False),
    **{
        f"random_pruning_{budget}": Method(
            f"random pruning, {name}", RANDOM, random(recipes.random_pruning), {"budget": budget} | START
        )
        for budget, name in (("uniform", "uniform"), ("epl", "EPL"), ("erk", "ERK"))
    },
    "magnitude": Method(
        "magnitude",
        SALIENCY,
        shuffled(lambda model, s: recipes.magnitude(model, **s.size)),
        {"shuffle": False},
        from_dense=True,
    ),
    "snip": Method(
        "SNIP",
        SALIENCY,
        shuffled(by_loss(recipes.snip)),
        BATCH | {"loss": "cross_entropy"},
        from_dense=True,
        needs_data=True,
    ),
    "grasp": Method(
        "GraSP",
        SALIENCY,
        shuffled(_grasp),
        {"per_class": 10, "temperature": 200, "shuffle": False},
        from_dense=True,
        needs_data=True,
    ),
    "iterative_snip": Method(
        "Iterative SNIP",
        ROUNDS,
        shuffled(by_loss(recipes.iterative_snip)),
        ROUNDS_OF_LOSS,
        from_dense=True,
        needs_data=True,
    ),
    "force": Method(
        "FORCE",
        ROUNDS,
        shuffled(force),
        ROUNDS_OF_LOSS | RULE,
        from_dense=True,
        needs_data=True,
        authors={"steps": 10, "loss": "nll"},
    ),
    "synflow": Method("SynFlow", ROUNDS, shuffled(_synflow), {"steps": 100, "shuffle": False}, from_dense=True),
    "imp": Method(
        "IMP, 9 rounds", TRAINED, shuffled(_imp), {"rounds": 9, "shuffle": False}, from_dense=True, needs_data=True
    ),
    "set": Method("SET, ERK", TRAINED, random(recipes.set, moving=True), MOVES | ERK | START, _set),
    "rigl": Method("RigL, ERK", TRAINED, random(recipes.rigl, moving=True), MOVES | ERK | START, _rigl),
    "dctps": Method("DCTpS, EPL", COSINES, plus_sparse(), EPL | OFFSET | {"frozen": False}),
    "dctps_set": Method("DCTpS + SET, ERK", COSINES, plus_sparse(moving=True), MOVES | ERK | OFFSET, _set),
    "dctps_rigl": Method("DCTpS + RigL, ERK", COSINES, plus_sparse(moving=True), MOVES | ERK | OFFSET, _rigl),
    "freezenet": Method("FreezeNet (random), EPL", GAUSSIAN, random(recipes.freezenet), EPL | RULE),
    "freezenet_snip": Method(
        "FreezeNet (SNIP)", GAUSSIAN, shuffled(_freezenet_snip), BATCH, from_dense=True, needs_data=True
    ),
    "random_subspace": Method(
        "random subspace",
        GAUSSIAN,
        lambda model, s: recipes.random_subspace(model, **s.size, seed=s.seed),
        cost=lambda density: 1 + 100 * density,
    ),
}
METHODS = {name: replace(known, values=VALUES) for name, known in METHODS.items()}
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
