"""The methods a study compares: one line each, and the only place where the study knows them.

A new method is one line in `METHODS`: its name, its label, the family it is drawn with, and what it does to a model in
a `Setting`. Its `options` are part of a run's configuration. A method whose steps are slower than ordinary training's
says so in `cost`, which only orders the runs and the time left. One of your own is a `Method` that a study names by
its import path.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import Optimizer

from subspace import Key, methods, recipes
from subspace.methods import GradualPruning, Mover
from subspace.methods.recipe import SparseRecipe
from subspace.study.entries.entry import Choice
from subspace.study.entries.lookup import lookup, require_known
from subspace.study.methods.setting import Setting
from subspace.study.methods.variants import (
    Apply,
    all_coefficients,
    basis_argument,
    budget_arguments,
    by_score,
    controlled,
    doped,
    force,
    format_option,
    loss_of,
    plus_sparse,
    random,
    random_subspace,
    require_value,
    said,
)


@dataclass(frozen=True)
class Method:
    """A way to re-parametrize a model in place, and perhaps to move U while it trains.

    label, family: what figures call it, and whom they draw it with. apply: re-parametrizes a model in a `Setting`.
    options: its own, by name, with their defaults. mover: makes what moves U while a network trains. prunes: whether
    that begins with all weights, so that they train at the rate of the dense network. from_dense: whether U is chosen
    at the dense network, which is then held as well. needs_data: whether it is chosen by data.
    cost(density): the time of an epoch, in those of ordinary training. has_density: whether it has a size at all.
    least_dim(model): how many numbers are enough for it, whatever its options.
    authors: the defaults under the rule "authors", where they are others.
    """

    label: str
    family: str
    apply: Apply
    options: Mapping[str, Any] = field(default_factory=dict)
    mover: Callable[[nn.Module, Optimizer, Setting], Mover | GradualPruning] | None = None
    prunes: bool = False
    from_dense: bool = False
    needs_data: bool = False
    cost: Callable[[float], float] = lambda density: 1.0
    has_density: bool = True
    least_dim: Callable[[nn.Module], int] = lambda model: 1
    authors: Mapping[str, Any] = field(default_factory=dict)

    def defaults(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """The values of the options that are not given, where these are."""
        return {**self.options, **(self.authors if options.get("rule") == "authors" else {})}

    def with_defaults(self, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """All options; ValueError, naming the method, for one that it does not have or a value out of range."""
        require_known(options, sorted(self.options), f"options of {name} must be")
        for option, value in options.items():
            default = self.options[option]
            kinds = (int, float) if type(default) in (int, float) else type(default)
            if not isinstance(value, kinds) or isinstance(value, bool) != isinstance(default, bool):
                raise ValueError(f"{option} of {name} must be such as {default!r}, got {value!r}")
            if name in METHODS:  # one of your own may call something else by such a name
                require_value(option, value, name)
        given = {o: float(value) if isinstance(self.options[o], float) else value for o, value in options.items()}
        return {**self.defaults(given), **given}

    def label_for(self, options: Mapping[str, Any]) -> str:
        """The label with non-default options; they replace a default that the label mentions.

        >>> METHODS["dctps"].label_for({"budget": "erk", "alpha": "fixed"})
        'DCTpS, ERK, alpha=fixed'
        """
        text, other = self.label, []
        for name, value in options.items():
            if (default := self.defaults(options).get(name)) != value:
                place = re.compile(rf"\b{re.escape(format_option(default))}\b")
                if default != "" and place.search(text):
                    text = place.sub(format_option(value), text)
                else:
                    other.append(f"{name}={format_option(value)}")
        return ", ".join([text, *other])


def _freezenet_snip(model: nn.Module, s: Setting) -> nn.Module:
    loss = s.loss(s.options["samples"])
    return recipes.freezenet(model, **s.size, seed=s.seed, objective=loss, **basis_argument(s))


def _imp(model: nn.Module, s: Setting) -> nn.Module:
    """Drop the same fraction in every round, so that they reach the density; none is needed at density 1."""
    fraction = 1 - s.density ** (1 / s.options["rounds"])
    search = methods.LotteryTicket(model, s.fit, fraction=fraction or 0.5, **basis_argument(s))
    s.resume(search)
    ticket = search.run(**s.size)
    return ticket if search.rounds else recipes.ordinary(ticket)


def _schedule(s: Setting) -> dict[str, Any]:
    """The options of a mover; its t_end is a share of all steps here, which Price and Tanner's code truncates."""
    t_end = s.options["t_end"] * s.steps
    return {name: s.options[name] for name in MOVES} | {"t_end": int(t_end) if s.by_authors else round(t_end)}


def _set(model: nn.Module, optimizer: Optimizer, s: Setting) -> Mover:
    key = Key(s.seed).fold("SET")
    return methods.SET(model, optimizer, key=key, decay=methods.constant, **_schedule(s))


def _rigl(model: nn.Module, optimizer: Optimizer, s: Setting) -> Mover:
    return methods.RigL(model, optimizer, **_schedule(s))


SHUFFLE, REINIT, INVERT = {"shuffle": False}, {"reinit": False}, {"invert": False}
BASIS = {"basis": "identity"}
SUBSPACE = {"embedding": "gaussian", "offset": "gaussian", "tensors": "weights", "burn_in": 0}


def _gradual(model: nn.Module, optimizer: Optimizer, s: Setting) -> GradualPruning:
    if s.options["t_end"] < s.options["t_start"]:
        raise ValueError(f"t_end must be at least t_start, {s.options['t_start']}, got {s.options['t_end']}")
    start, end = (round(s.options[name] * s.steps) for name in ("t_start", "t_end"))
    arguments, delta_t = budget_arguments(s, moving=True), s.options["delta_t"]
    if arguments.pop("groups"):
        raise ValueError(f"budget must be one of tensors to prune gradually, got {s.options['budget']}")
    schedule = {"t_start": start, "t_end": max(end, start + 1), "delta_t": delta_t}
    return GradualPruning(model, optimizer, **s.size, **schedule, **arguments)


def _scored(label: str, family: str, choose: Apply, options: Mapping[str, Any], **more: Any) -> Method:
    """A method that chooses U at the dense network, and whose support may be reshuffled."""
    return Method(label, family, controlled(choose), SHUFFLE | BASIS | dict(options), from_dense=True, **more)


RANDOM, SALIENCY, ROUNDS = "random support", "saliency, one shot", "saliency, in rounds"
TRAINED, COSINES, GAUSSIAN, FACTORS = "U from training", "DCT offset", "Gaussian offset", "factors and S"
# The papers' numbers, but for the length of these runs: a move every 8 steps in place of 100, and rounds of IMP that
# take more than 20 % at densities below 0.13.
SAMPLES, LOSS, FRESH = {"samples": 128}, {"loss": "cross_entropy"}, {"steps": 60, "batches": "fresh"}
MOVES = {"delta_t": 8, "fraction": 0.3, "t_end": 0.75}
PRUNES = {"delta_t": 8, "t_start": 0.0, "t_end": 0.75}
RULE = {"rule": "exact"}
START = RULE | {"init": "dense"} | BASIS
OFFSET = RULE | BASIS | {"offset": "dct", "gain": 1.0, "alpha": "trained", "alphas": ""}
UNIFORM, EPL, ERK = {"budget": "uniform"}, {"budget": "epl"}, {"budget": "erk"}
PRUNING = random(recipes.random_pruning)
SNIP = by_score(methods.snip, loss_of)
GRASP = by_score(methods.grasp, lambda s: s.balanced_loss(s.options["per_class"], s.options["temperature"]))
CONTROLS = REINIT | INVERT
DATA = {"needs_data": True}

METHODS = {
    "ordinary": Method("ordinary (dense)", "dense", lambda model, _: recipes.ordinary(model), has_density=False),
    "random_pruning_uniform": Method("random pruning, uniform", RANDOM, PRUNING, UNIFORM | START),
    "random_pruning_epl": Method("random pruning, EPL", RANDOM, PRUNING, EPL | START),
    "random_pruning_erk": Method("random pruning, ERK", RANDOM, PRUNING, ERK | START),
    "magnitude": _scored("magnitude", SALIENCY, by_score(methods.magnitude, lambda s: None), CONTROLS),
    "snip": _scored("SNIP", SALIENCY, SNIP, SAMPLES | LOSS | CONTROLS, **DATA),
    "grasp": _scored("GraSP", SALIENCY, GRASP, {"per_class": 10, "temperature": 200} | CONTROLS, **DATA),
    "iterative_snip": _scored("Iterative SNIP", ROUNDS, SNIP, SAMPLES | FRESH | LOSS | CONTROLS, **DATA),
    "force": _scored(
        "FORCE", ROUNDS, force, SAMPLES | FRESH | LOSS | RULE | REINIT, authors={"steps": 10, "loss": "nll"}, **DATA
    ),
    "synflow": _scored("SynFlow", ROUNDS, by_score(methods.synflow, Setting.flow), {"steps": 100} | CONTROLS),
    "imp": _scored("IMP, 9 rounds", TRAINED, _imp, {"rounds": 9} | REINIT, **DATA),
    "set": Method("SET, ERK", TRAINED, random(recipes.set, moving=True), MOVES | ERK | START, _set),
    "rigl": Method("RigL, ERK", TRAINED, random(recipes.rigl, moving=True), MOVES | ERK | START, _rigl),
    "gradual": Method(
        "gradual pruning, uniform", TRAINED, all_coefficients, PRUNES | UNIFORM | BASIS, _gradual, prunes=True
    ),
    "dctps": Method("DCTpS, EPL", COSINES, plus_sparse(), EPL | OFFSET | {"frozen": False}),
    "dctps_set": Method("DCTpS + SET, ERK", COSINES, plus_sparse(moving=True), MOVES | ERK | OFFSET, _set),
    "dctps_rigl": Method("DCTpS + RigL, ERK", COSINES, plus_sparse(moving=True), MOVES | ERK | OFFSET, _rigl),
    "freezenet": Method("FreezeNet (random), EPL", GAUSSIAN, random(recipes.freezenet), EPL | RULE | BASIS),
    "freezenet_snip": _scored("FreezeNet (SNIP)", GAUSSIAN, _freezenet_snip, SAMPLES, **DATA),
    "doped": Method("doping", FACTORS, doped, {"factors": "both", "share": 0.5, "dropout": 0.0}),
    "random_subspace": Method(
        "random subspace",
        GAUSSIAN,
        random_subspace,
        SUBSPACE,
        cost=lambda density: 1 + 100 * density,
    ),
    "said": Method("SAID", GAUSSIAN, said, {"tensors": "weights"}, least_dim=lambda net: len([*net.parameters()]) + 1),
}
BASIC = ("ordinary", "random_pruning_uniform", "random_pruning_epl", "dctps", "freezenet", "random_subspace")


def method(name: str) -> Method:
    """The method called `name` or at that import path; ValueError with the names, and the nearest, if there is none."""
    if name not in METHODS and name in recipe_names():
        near = [each for each in METHODS if each.startswith(name)]
        here = f"which is here {' or '.join(near)}" if near else "of which there is no method here"
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got the recipe {name!r}, {here}")
    found = lookup(name, METHODS, "method", importable=True)
    if not isinstance(found, Method):
        raise ValueError(f"method must be a Method, got {type(found).__name__} at {name!r}")
    return found


def recipe_names() -> list[str]:
    """The names of all recipes."""
    return [name for name, value in vars(recipes).items() if recipe_name(value) == name]


def recipe_name(value: object) -> str | None:
    """The name of a recipe; None for anything else."""
    name = getattr(value, "__name__", "")
    ours = isinstance(value, SparseRecipe) or getattr(value, "__module__", None) == recipes.__name__
    return name if ours and not name.startswith("_") and getattr(recipes, name, None) is value else None


def earlier(chosen: Choice) -> dict[str, Any]:
    """What a known method did before it had an option for it, by the option's name."""
    known = METHODS[chosen.name].options if chosen.name in METHODS else {}
    before = {"basis": "identity", "reinit": False, "invert": False}
    before["batches"] = "fresh" if chosen.options.get("rule") == "authors" else "one"
    before |= SUBSPACE if "embedding" in known else {}
    return {name: value for name, value in before.items() if name in known}
