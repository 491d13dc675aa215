"""What the options of the study's methods stand for: budgets, offsets, alphas, starts, reshuffled supports.

budget  how many entries a tensor gets: `uniform`, `epl`, `erk`; `epf`, the same in every row; `epf_average`, the totals
        of epf at random places
rule    `exact`, or `authors` for that of Price and Tanner's code (`methods.authors`)
offset  d of alpha d + S: `dct`, `signed_dct`, `hadamard`, `gaussian` (variance gain^2 / fan-in), `rank_one`, each with
        its `gain`; `zero`, for which S starts at the weights kept, since a network of zeros would compute 0
alpha   `trained` from 1, with d = 0 as in Price and Tanner's code, so that weight decay pulls alpha to 0; or `fixed` at
        1; alphas: another start of it, for fixup_resnet110 (its `set_alphas`)
frozen  without S: alpha, norms and biases train
init    `sparse`: Kaiming's rule for the actual fan-in of every row, in place of the dense network's (Evci et al.,
        "Gradient flow in sparse neural networks and how lottery tickets win", 2022)
shuffle the support chosen, reshuffled inside every tensor: the control of Frankle et al. (2021)
loss    of a saliency: `nll` is that of the raw logits without a softmax, as in naver/force and Price and Tanner's code
batches of a saliency in rounds: `fresh` ones in every round, as the papers have it, or `one` for all of them
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Size, Tensor, nn

from subspace import Key, budgets, methods, owner_of, recipes, register, subspaces
from subspace.embeddings import Sparse
from subspace.methods import Supports
from subspace.offsets import DCT, Gaussian, Hadamard, Offset, RankOne, SignedDCT, Zero
from subspace.study.methods import authors
from subspace.study.methods.alphas import set_alphas
from subspace.study.methods.setting import LOSSES, Setting

Apply = Callable[[nn.Module, Setting], nn.Module]
BUDGETS = {
    "uniform": ("uniform", budgets.uniform, None),
    "epl": ("EPL", budgets.epl, None),
    "epf": ("EPF", budgets.epf, methods.rows),
    "epf_average": ("EPF on average", budgets.epf, None),
    "erk": ("ERK", budgets.erk, None),
}
OFFSETS: dict[str, Callable[[Tensor, Key, float], Offset]] = {
    "dct": lambda w, key, gain: DCT(w, gain=gain),
    "signed_dct": lambda w, key, gain: SignedDCT(w, key=key.fold("d"), gain=gain),
    "hadamard": lambda w, key, gain: Hadamard(w, gain=gain),
    "gaussian": lambda w, key, gain: Gaussian(w, key=key.fold("d"), gain=gain, keep=True),
    "rank_one": lambda w, key, gain: RankOne(w, key=key.fold("d"), gain=gain),
}
VALUES = {
    "budget": tuple(BUDGETS),
    "rule": ("exact", "authors"),
    "offset": (*OFFSETS, "zero"),
    "alpha": ("trained", "fixed"),
    "alphas": ("", "authors", "norms"),
    "init": ("dense", "sparse"),
    "loss": tuple(LOSSES),
    "batches": ("fresh", "one"),
}
COUNTS = ("steps", "rounds", "samples", "per_class", "delta_t")


def require_value(option: str, value: Any, name: str) -> None:
    """ValueError, naming the method, for a value that an option of the methods here cannot have."""
    if option in VALUES and value not in VALUES[option]:
        known = ", ".join(map(repr, VALUES[option]))
        raise ValueError(f"{option} of {name} must be one of {known}, got {value!r}")
    if option in COUNTS and not (isinstance(value, int) and 1 <= value < 2**63):
        raise ValueError(f"{option} of {name} must be an integer of at least 1 and below 2^63, got {value!r}")
    if option in ("fraction", "t_end") and not 0 <= value <= 1:
        raise ValueError(f"{option} of {name} must be in [0, 1], got {value!r}")
    if option in ("gain", "temperature") and not 0 < value < math.inf:
        raise ValueError(f"{option} of {name} must be positive and finite, got {value!r}")


def format_option(value: Any) -> str:
    """An option's value as labels have it.

    >>> format_option("epl"), format_option(2**0.5), format_option(True)
    ('EPL', '1.41421', 'True')
    """
    if isinstance(value, str) and value in BUDGETS:
        return BUDGETS[value][0]
    return f"{value:g}" if isinstance(value, float) else str(value)


def budget_arguments(s: Setting, moving: bool = False) -> dict[str, Any]:
    """The arguments of a recipe for the options `budget` and `rule`."""
    name = s.options["budget"]
    if s.by_authors:
        return {"budget": authors.budget("epf_average" if name == "epf" else name, s.density, moving)}
    return {"budget": BUDGETS[name][1], "groups": BUDGETS[name][2]}


def random(recipe: Callable[..., nn.Module], moving: bool = False) -> Apply:
    """U at random, by the options `budget`, `rule` and `init`; moving: for a mover."""

    def apply(model: nn.Module, s: Setting) -> nn.Module:
        recipe(model, **s.size, seed=s.seed, **budget_arguments(s, moving))
        return by_fan_in(model) if s.options.get("init") == "sparse" else model

    return apply


@torch.no_grad()
def by_fan_in(model: nn.Module) -> nn.Module:
    """Scale the weights kept of every row by (fan-in / how many are kept)^1/2; return the model."""
    for _, space in subspaces(model):
        support, shape = space.parametrization.embedding.support(), space.parametrization.offset.shape
        rows = cast("Tensor", support) // shape[1:].numel()
        kept = torch.bincount(rows, minlength=shape[0])[rows]
        space.theta.mul_((shape[1:].numel() / kept).sqrt())
    return model


def plus_sparse(moving: bool = False) -> Apply:
    """alpha d + S, by the options of DCTpS."""

    def apply(model: nn.Module, s: Setting) -> nn.Module:
        name, gain, rule = s.options["offset"], float(s.options["gain"]), s.options["alphas"]
        fixed, frozen = s.options["alpha"] == "fixed", s.options.get("frozen", False)
        if name == "zero":
            if rule or frozen:
                raise ValueError("offset must not be zero with alphas or a frozen S, got zero")
            return random(recipes.random_pruning, moving)(model, s)
        plain = copy.deepcopy(model)
        recipe = recipes.offset_plus_sparse(
            lambda w, key: OFFSETS[name](w, key, gain), alpha=bool(rule) or not fixed, anchored=False
        )
        with warnings.catch_warnings():
            if frozen:
                warnings.simplefilter("ignore")  # that no tensor gets an entry
            recipe(
                model, **s.size, seed=s.seed, **({"budget": empty_budget} if frozen else budget_arguments(s, moving))
            )
        if not rule:
            return model
        set_alphas(model, rule)
        return fix_alphas(plain, model) if fixed else model

    return apply


def empty_budget(shapes: Sequence[Size], total: int) -> list[int]:
    """The budget of an S that is not there."""
    return [0] * len(shapes)


def fix_alphas(plain: nn.Module, model: nn.Module) -> nn.Module:
    """The plain model with the same d, U and start, each alpha fixed at its present value as the gain of its d."""
    for q, space in subspaces(model):
        d, U, theta = space.parametrization.offset, space.parametrization.embedding, space.theta.detach()
        if (line := U.parts()[0].direction()) is not None:
            (_, U), scaled = U.parts(), line.offset
            options = scaled.describe()
            del options["class"]
            d = type(scaled)(plain.get_parameter(q), **options | {"gain": float(theta[0]) * options["gain"]})
            theta = theta[1:]
        register(*owner_of(plain, q), d, U, theta)
    return plain


def shuffled(choose: Apply) -> Apply:
    """A choice of U, reshuffled if the option `shuffle` is set; weights kept are then those at the new places."""

    def apply(model: nn.Module, s: Setting) -> nn.Module:
        if not s.options["shuffle"]:
            return choose(model, s)
        chosen = choose(copy.deepcopy(model), s)
        spaces = dict(subspaces(chosen))
        supports = {q: space.parametrization.embedding.support() for q, space in spaces.items()}
        found = {q: support for q, support in supports.items() if support is not None}
        if len(found) < len(spaces):
            return chosen  # nothing was pruned
        weights = {q: model.get_parameter(q) for q in spaces}
        places = methods.shuffle(found, weights, Key(s.seed).fold("shuffle"))
        return keep(model, places, {q: space.parametrization.offset for q, space in spaces.items()})

    return apply


def keep(model: nn.Module, places: Supports, offsets: dict[str, Offset] | None = None) -> nn.Module:
    """d = 0 and theta = the weights kept; or another d, and theta = 0."""
    for q, index in places.items():
        weight = model.get_parameter(q)
        d = Zero(weight) if offsets is None else offsets[q]
        structure = d.structure()
        theta = None if structure and structure.is_zero else weight.new_zeros(len(index))
        register(*owner_of(model, q), d, Sparse(weight, index=index), theta)
    return model


def force(model: nn.Module, s: Setting) -> nn.Module:
    """FORCE, or what Price and Tanner's code calls by that name."""
    if s.by_authors:
        return keep(model, authors.force(model, s))
    return by_loss(recipes.force)(model, s)


def by_loss(recipe: Callable[..., nn.Module]) -> Apply:
    """U by a saliency of the loss on `samples` of the data, in every round other ones where `batches` is fresh."""

    def apply(model: nn.Module, s: Setting) -> nn.Module:
        steps = {"steps": int(s.options["steps"])} if "steps" in s.options else {}
        loss = s.fresh_loss if s.options.get("batches") == "fresh" else s.loss
        return recipe(model, objective=loss(s.options["samples"], s.options["loss"]), **s.size, **steps)

    return apply
