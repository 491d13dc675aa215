"""What the options of the study's methods stand for: budgets, offsets, alphas, starts, reshuffled supports.

budget  how many entries a tensor gets: `uniform`, `epl`, `erk`; `epf`, the same in every row; `epf_average`, the totals
        of epf at random places; `n:2` to `n:32`, N:M sparsity: the same in every M consecutive inputs of a row at each
        tap, or in every row of a tensor where M does not divide the inputs
rule    `exact`, or `authors` for that of Price and Tanner's code (`methods.authors`)
offset  d of alpha d + S: `dct`, `signed_dct`, `hadamard`, `gaussian` (variance gain^2 / fan-in), `rank_one`, each with
        its `gain`; `zero`, for which S starts at the weights kept, since a network of zeros would compute 0
alpha   `trained` from 1, with d = 0 as in Price and Tanner's code, so that weight decay pulls alpha to 0; or `fixed` at
        1; alphas: another start of it, for fixup_resnet110 (its `set_alphas`)
frozen  without S: alpha, norms and biases train
init    `sparse`: Kaiming's rule for the actual fan-in of every row, in place of the dense network's (Evci et al.,
        "Gradient flow in sparse neural networks and how lottery tickets win", 2022)
basis   in which coefficients are scored, chosen, pruned and moved: `identity`, the weights themselves; `dct`, `haar`
        or `hadamard` of a tensor's matrix in two dimensions, or with `_filters` of every filter along its axes; or
        `singular`, between the singular vectors of the first weights
shuffle the support chosen, reshuffled inside every tensor; invert: the entries with the lowest scores, as many in every
        tensor; reinit: the weights kept start at others of their tensor's first weights: the controls of Frankle et
        al., "Pruning neural networks at initialization: why are we missing the mark?" (2021)
loss    of a saliency: `nll` is that of the raw logits without a softmax, as in naver/force and Price and Tanner's code
batches of a saliency in rounds: `fresh` ones in every round, as the papers have it, or `one` for all of them
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Any, cast

import torch
from torch import Size, Tensor, nn

from subspace import Key, budgets, embeddings, methods, owner_of, recipes, register, subspaces, targets
from subspace._base.selection import layouts_of
from subspace.embeddings import Embedding, Singular, Sparse
from subspace.methods import Objective, Saliency, Supports
from subspace.methods.coefficients import Bases, BasisRule, bases_of, embedding
from subspace.offsets import (
    DCT,
    BlockDCT,
    BlockHadamard,
    Gaussian,
    Haar,
    Hadamard,
    Offset,
    Pretrained,
    RankOne,
    SignedDCT,
    SignedHadamard,
    SignedPermutation,
    Zero,
)
from subspace.study.methods import authors
from subspace.study.methods.alphas import set_alphas
from subspace.study.methods.setting import LOSSES, Setting

Apply = Callable[[nn.Module, Setting], nn.Module]


def n_to_m(m: int) -> budgets.Budget:
    """The budget of N in every m inputs, exact where m divides a tensor's inputs; the others share what is left."""

    def counts(shapes: Sequence[Size], total: int) -> list[int]:
        n = round(m * total / sum(shape.numel() for shape in shapes))
        fits = [_has_blocks(shape, m) for shape in shapes]
        whole = sum(shape.numel() * n // m for shape, fit in zip(shapes, fits, strict=True) if fit)
        others = [shape for shape, fit in zip(shapes, fits, strict=True) if not fit]
        left = iter(budgets.uniform(others, total - whole)) if others else iter([])
        return [shape.numel() * n // m if fit else next(left) for shape, fit in zip(shapes, fits, strict=True)]

    return counts


def blocks_or_rows(m: int) -> methods.groups.Groups:
    """The grouping of every m consecutive inputs, or of rows where m does not divide them."""
    return lambda shape: methods.blocks(m)(shape) if _has_blocks(shape, m) else methods.rows(shape)


def _has_blocks(shape: Size, m: int) -> bool:
    return len(shape) > 1 and shape[1] % m == 0


BUDGETS = {
    "uniform": ("uniform", budgets.uniform, None),
    "epl": ("EPL", budgets.epl, None),
    "epf": ("EPF", budgets.epf, methods.rows),
    "epf_average": ("EPF on average", budgets.epf, None),
    "erk": ("ERK", budgets.erk, None),
    **{f"n:{m}": (f"N:{m}", n_to_m(m), blocks_or_rows(m)) for m in (2, 4, 8, 16, 32)},
}
OFFSETS: dict[str, Callable[[Tensor, Key, float], Offset]] = {
    "dct": lambda w, key, gain: DCT(w, gain=gain),
    "signed_dct": lambda w, key, gain: SignedDCT(w, key=key.fold("d"), gain=gain),
    "hadamard": lambda w, key, gain: Hadamard(w, gain=gain),
    "signed_hadamard": lambda w, key, gain: SignedHadamard(w, key=key.fold("d"), gain=gain),
    "block_hadamard": lambda w, key, gain: BlockHadamard(w, key=key.fold("d"), gain=gain),
    "block_dct": lambda w, key, gain: BlockDCT(w, key=key.fold("d"), gain=gain),
    "haar": lambda w, key, gain: Haar(w, gain=gain),
    "signed_permutation": lambda w, key, gain: SignedPermutation(w, key=key.fold("d"), gain=gain),
    "gaussian": lambda w, key, gain: Gaussian(w, key=key.fold("d"), gain=gain, keep=True),
    "rank_one": lambda w, key, gain: RankOne(w, key=key.fold("d"), gain=gain),
}
BASES: dict[str, BasisRule | None] = {
    "identity": None,
    "dct": embeddings.DCT,
    "dct_filters": lambda w: embeddings.DCT(w, over="filters"),
    "haar": embeddings.Haar,
    "haar_filters": lambda w: embeddings.Haar(w, over="filters"),
    "hadamard": embeddings.Hadamard,
    "hadamard_filters": lambda w: embeddings.Hadamard(w, over="filters"),
    "singular": lambda w: Singular(Pretrained(w)),
}
EMBEDDINGS: dict[str, Callable[..., Embedding] | None] = {
    "gaussian": None,
    "srht": embeddings.SRHT,
    "hashed": embeddings.Hashed,
    "lottery": None,
}
VALUES = {
    "budget": tuple(BUDGETS),
    "rule": ("exact", "authors"),
    "offset": (*OFFSETS, "zero", "initial"),
    "alpha": ("trained", "fixed"),
    "alphas": ("", "authors", "norms"),
    "init": ("dense", "sparse"),
    "loss": tuple(LOSSES),
    "batches": ("fresh", "one"),
    "basis": tuple(BASES),
    "embedding": tuple(EMBEDDINGS),
    "factors": ("both", "one"),
    "tensors": ("weights", "all"),
}
COUNTS = ("steps", "rounds", "samples", "per_class", "delta_t")


def require_value(option: str, value: Any, name: str) -> None:
    """ValueError, naming the method, for a value that an option of the methods here cannot have."""
    if option in VALUES and value not in VALUES[option]:
        known = ", ".join(map(repr, VALUES[option]))
        raise ValueError(f"{option} of {name} must be one of {known}, got {value!r}")
    if option in COUNTS and not (isinstance(value, int) and 1 <= value < 2**63):
        raise ValueError(f"{option} of {name} must be an integer of at least 1 and below 2^63, got {value!r}")
    if option in ("fraction", "t_start", "t_end", "share", "dropout") and not 0 <= value <= 1:
        raise ValueError(f"{option} of {name} must be in [0, 1], got {value!r}")
    if option == "burn_in" and not (isinstance(value, int) and 0 <= value < 2**63):
        raise ValueError(f"burn_in of {name} must be an integer of at least 0 and below 2^63, got {value!r}")
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
    if name.startswith("n:"):
        require_whole(int(name[2:]), s.density, moving)
    return {"budget": BUDGETS[name][1], "groups": BUDGETS[name][2]}


def require_whole(m: int, density: float, moving: bool) -> None:
    """ValueError unless a density is that of N in every m inputs, and they stay."""
    if moving:
        raise ValueError(f"budget must be one that a moving U keeps, got n:{m}")
    if (methods.budgets.exact(density) * m).denominator != 1:
        raise ValueError(f"density must be a multiple of 1/{m} for the budget n:{m}, got {density:g}")


def basis_argument(s: Setting) -> dict[str, Any]:
    """The argument of a recipe for the option `basis`; none for the weights themselves."""
    rule = BASES[s.options.get("basis", "identity")]
    return {} if rule is None else {"basis": rule}


def all_coefficients(model: nn.Module, s: Setting) -> nn.Module:
    """Every weight trained as it is, or every coefficient in the option's basis."""
    if not (basis := basis_argument(s).get("basis")):
        return recipes.ordinary(model)
    for q, target in targets(model).items():
        register(*owner_of(model, q), Zero(target.weight), basis(target.weight.detach()))
    return model


def random(recipe: Callable[..., nn.Module], moving: bool = False) -> Apply:
    """U at random, by the options `budget`, `rule` and `init`; moving: for a mover."""

    def apply(model: nn.Module, s: Setting) -> nn.Module:
        basis, sparse_start = basis_argument(s), s.options.get("init") == "sparse"
        if basis and sparse_start:
            raise ValueError(f"init must be dense in a basis, got sparse in {s.options['basis']}")
        recipe(model, **s.size, seed=s.seed, **budget_arguments(s, moving), **basis)
        return by_fan_in(model) if sparse_start else model

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


def random_subspace(model: nn.Module, s: Setting) -> nn.Module:
    """One theta of all tensors, by the options `embedding`, `offset`, `tensors` and `burn_in`.

    Larsen et al. (2022): `burn_in` epochs of ordinary training first, and "lottery", the directions of one from there.
    """
    name, burn_in, is_lottery = s.options["offset"], s.options["burn_in"], s.options["embedding"] == "lottery"
    if name == "zero":
        raise ValueError("offset must not be zero in a random subspace, where no weight would be trained, got zero")
    if name != "initial" and (burn_in or is_lottery):
        raise ValueError(f"offset must be initial after a burn-in and in a lottery subspace, got {name}")
    if burn_in:
        s.fit(model, burn_in)
    if is_lottery:
        return lottery_subspace(model, s)
    offset = (
        None
        if name == "gaussian"
        else (lambda w, key: Pretrained(w) if name == "initial" else OFFSETS[name](w, key, 1.0))
    )
    return recipes.random_subspace(
        model, **s.size, seed=s.seed, offset=offset, embedding=EMBEDDINGS[s.options["embedding"]], include=chosen(s)
    )


def said(model: nn.Module, s: Setting) -> nn.Module:
    """A random subspace through the weights as they are built, and a factor for each tensor, by `tensors`."""
    return methods.said(model, **s.size, seed=s.seed, include=chosen(s))


def chosen(s: Setting) -> Callable[[str, Tensor], bool] | None:
    """The selection of the option `tensors`: None for the weight matrices."""
    return (lambda name, tensor: True) if s.options["tensors"] == "all" else None


def lottery_subspace(model: nn.Module, s: Setting) -> nn.Module:
    """The first principal directions of an ordinary training from here, of about 4 points held for each."""
    dim = s.size.get("dim") or max(1, round(s.density * sum(t.weight.numel() for t in targets(model).values())))
    trained = copy.deepcopy(model)
    trajectory = methods.Trajectory(trained, include=chosen(s))
    every, step = max(1, s.steps // (4 * dim)), count(1)
    s.fit(trained, after_step=lambda: trajectory.record() if next(step) % every == 0 else None)
    return recipes.lottery_subspace(model, trajectory, dim=dim)


def doped(model: nn.Module, s: Setting) -> nn.Module:
    """A Kronecker product and a sparse matrix, by the options `factors`, `share` and `dropout`."""
    share, dropout = float(s.options["share"]), float(s.options["dropout"])
    if s.options["factors"] == "both":
        return methods.dope(model, **s.size, seed=s.seed, share=share, dropout=dropout)
    if dropout:
        raise ValueError(f"dropout must be 0 with one factor trained, got {dropout}")
    return recipes.doped(model, **s.size, seed=s.seed, share=share)


def plus_sparse(moving: bool = False) -> Apply:
    """alpha d + S, by the options of DCTpS."""

    def apply(model: nn.Module, s: Setting) -> nn.Module:
        name, gain, rule = s.options["offset"], float(s.options["gain"]), s.options["alphas"]
        fixed, frozen = s.options["alpha"] == "fixed", s.options.get("frozen", False)
        if name == "zero":
            if rule or frozen or fixed or gain != 1:
                raise ValueError("offset must not be zero with alpha, alphas, gain or a frozen S, got zero")
            return random(recipes.random_pruning, moving)(model, s)
        if name == "initial":
            raise ValueError("offset must be one with a gain beside a sparse U, got initial")
        plain = copy.deepcopy(model)
        recipe = recipes.offset_plus_sparse(
            lambda w, key: OFFSETS[name](w, key, gain), alpha=bool(rule) or not fixed, anchored=False
        )
        with warnings.catch_warnings():
            if frozen:
                warnings.simplefilter("ignore")  # that no tensor gets an entry
            budget = {"budget": empty_budget} if frozen else budget_arguments(s, moving)
            recipe(model, **s.size, seed=s.seed, **budget, **basis_argument(s))
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


def controlled(choose: Apply) -> Apply:
    """A choice of U, at other places if the option `shuffle` is set, from other weights if `reinit` is."""

    def apply(model: nn.Module, s: Setting) -> nn.Module:
        shuffle, reinit = s.options["shuffle"], s.options.get("reinit", False)
        if not (shuffle or reinit):
            return choose(model, s)
        spaces = dict(subspaces(choose(copy.deepcopy(model), s)))
        sparse = {q: part for q, space in spaces.items() if (part := space.embedding.sparse_part()) is not None}
        weights = {q: model.get_parameter(q) for q in spaces}
        copies = {q: w.detach().clone() for q, w in weights.items()}
        bases = bases_of(copies, basis_argument(s).get("basis"), layouts_of(model))
        if reinit:
            redraw(weights, Key(s.seed).fold("reinit"))
        if len(sparse) < len(spaces):
            return recipes.ordinary(model)  # nothing was pruned
        places = {q: cast("Tensor", part.support()) for q, part in sparse.items()}
        if shuffle:
            places = methods.shuffle(places, weights, Key(s.seed).fold("shuffle"))
        return keep(model, places, {q: space.offset for q, space in spaces.items()}, bases)

    return apply


@torch.no_grad()
def redraw(weights: Mapping[str, Tensor], key: Key) -> None:
    """Give every weight the value of another one of its tensor: a draw from the distribution of the first weights."""
    for q, weight in weights.items():
        order = torch.from_numpy(key.fold(q).permutation(weight.numel())).to(weight.device)
        weight.copy_(weight.flatten()[order].reshape(weight.shape))


def keep(
    model: nn.Module, places: Supports, offsets: dict[str, Offset] | None = None, bases: Bases | None = None
) -> nn.Module:
    """d = 0 and theta = the weights kept, or their coefficients; or another d, and theta = 0."""
    for q, index in places.items():
        weight = model.get_parameter(q)
        d = Zero(weight) if offsets is None else offsets[q]
        structure = d.structure()
        theta = None if structure and structure.is_zero else weight.new_zeros(len(index))
        register(*owner_of(model, q), d, embedding(Sparse(weight, index=index), (bases or {}).get(q)), theta)
    return model


def force(model: nn.Module, s: Setting) -> nn.Module:
    """FORCE, or what Price and Tanner's code calls by that name."""
    basis = basis_argument(s)
    if not s.by_authors:
        return recipes.force(model, loss_of(s), **s.size, steps=int(s.options["steps"]), **basis)
    if basis:
        raise ValueError(f"basis must be identity under the rule authors, got {s.options['basis']}")
    return keep(model, authors.force(model, s))


def loss_of(s: Setting) -> Objective:
    """The loss on `samples` of the data, in every round other ones where `batches` is fresh."""
    loss = s.fresh_loss if s.options.get("batches") == "fresh" else s.loss
    return loss(s.options["samples"], s.options["loss"])


def by_score(saliency: Saliency, objective: Callable[[Setting], Objective | None]) -> Apply:
    """U by a saliency, in `steps` rounds if that is an option; the lowest scores if the option `invert` is set."""

    def apply(model: nn.Module, s: Setting) -> nn.Module:
        steps = {"steps": int(s.options["steps"])} if "steps" in s.options else {}
        size = {**s.size, **steps, **basis_argument(s)}
        if not s.options["invert"]:
            return recipes.prune(model, saliency, objective(s), **size)
        kept = methods.supports(model, saliency, objective(s), **size)
        budget = partial(budgets.at_least, [len(index) for index in kept.values()])
        return recipes.prune(model, methods.inverted(saliency), objective(s), **size, budget=budget)

    return apply
