"""Every named method as one choice of d, U and the start of theta, for a whole model.

Each recipe re-parametrizes the model's chosen tensors in place (`targets`: every weight matrix that is not frozen,
unless `include` or `exclude` say otherwise) and returns the model. What else trains, biases and norms, stays as it is;
only a recipe for pretrained models freezes it, and any recipe that is told what to `also_train`. Tied tensors are one
tensor, which all their owners read; one that holds several matrices (experts, gates, fused queries, keys and values)
has a d for each. Give exactly one of `density` (a fraction in (0, 1] of the N chosen weights) and `dim` (a number of
them): the total is exact, dim or round(density N), divided among the tensors by `budget` and inside them by `groups`.
alpha is trained but not counted. The seed, folded with each tensor's qualified name, fixes everything random. On an
error the model is as it was. Make the optimizer afterwards.

A model on the meta device is registered without its weights ever being there, by every recipe that asks nothing of
their values; `initialize` gives it its start.

Recipes that choose U by a saliency take an `objective`, a function of the model that returns one number, as lambda net:
cross_entropy(net(x), y); without a budget all tensors then compete.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from subspace import methods
from subspace._base.dtypes import at_least_float32
from subspace._base.key import Key
from subspace._base.qualified import named_parameters
from subspace._base.selection import Selection, Target, layouts_of, targets, targets_without, within
from subspace.embeddings import Direction, DirectSum, Embedding, Given, Identity, Kronecker, Scaled, Sparse
from subspace.embeddings import Gaussian as GaussianEmbedding
from subspace.embeddings.gaussian import STORED
from subspace.methods.budgets import Budget, entries, erk
from subspace.methods.coefficients import BasisRule, bases_of
from subspace.methods.doping import even_counts, largest_factor, most_of
from subspace.methods.groups import Groups
from subspace.methods.recipe import (
    SparseRecipe,
    Start,
    device_for_values,
    freeze_others,
    register_all,
    register_supports,
    restrict,
    rows_of_one,
    sparse_recipe,
    zeros,
)
from subspace.methods.saliencies.base import Objective, Saliency
from subspace.methods.trajectory import Trajectory
from subspace.offsets import DCT, Gaussian, Offset, Pretrained, Zero
from subspace.offsets.per_matrix import in_layout
from subspace.parametrization import share_theta, subspaces

TINY = 1e-30  # a norm below which a weight is 0
SECONDS_OF_A_STEP = 8e-8  # an entry of a Gaussian U drawn twice, on one core


def ordinary(model: nn.Module, *, include: Selection | None = None, exclude: Selection | None = None) -> nn.Module:
    """Ordinary training: d = 0, U = identity, theta = w.

    Args:
        model: Its tensors are registered in place.
        include: Which tensors, as of `targets`.
        exclude: Which tensors not, as of `targets`.

    Returns:
        The model.

    Raises:
        ValueError: As `targets`.
    """
    return register_all(
        model,
        {name: (Zero(w), Identity(w), None) for name, (*_, w) in targets(model, include, exclude).items()},
    )


@sparse_recipe(methods.snip)
def random_pruning(target: Target, U: Embedding, key: Key) -> Start:
    """Random pruning at initialization: d = 0, U sparse at random, theta = the weights kept.

    Arguments: those of every sparse recipe (see `SparseRecipe.__call__`); its saliency is SNIP's.
    """
    return Zero(target.weight), U, None


@sparse_recipe(methods.snip)
def freezenet(target: Target, U: Embedding, key: Key) -> Start:
    """FreezeNet (Wimmer et al. 2020): d = a seeded Kaiming initialisation, U sparse, theta = 0.

    With an objective, U is the paper's, by SNIP, |g w| at w = d; without one, random. Arguments: those of every sparse
    recipe (see `SparseRecipe.__call__`).
    """
    d = Gaussian(target.weight, key=key.fold("d"), keep=True, layout=target.layout)
    return d, U, zeros(target.weight, U.dim)


@sparse_recipe(methods.gradient, freezes=True)
def sparse_finetuning(target: Target, U: Embedding, key: Key) -> Start:
    """Sparse fine-tuning (SHiRA, Bhardwaj et al. 2024): d = the present weights, U sparse, theta = 0.

    U is random or, with an objective, where the gradient at w = d is largest, since |g theta| vanishes at theta = 0.
    Nothing but theta trains: biases, norms and embeddings are frozen, unless `also_train` names them, as it does a new
    head. Arguments: those of every sparse recipe (see `SparseRecipe.__call__`).
    """
    return Pretrained(target.weight), U, zeros(target.weight, U.dim)


def offset_plus_sparse(
    offset: Callable[[Tensor, Key], Offset], *, alpha: bool = True, scale: float = 1.0, anchored: bool = True
) -> SparseRecipe:
    """Make the recipe w = alpha d + S for any d: DCTpS with another offset in place of its DCT.

    With an objective, S is where the gradient at w = d is largest, since |g s| vanishes at s = 0. A weight with a full
    S has no alpha.

    Args:
        offset: (weight, key) -> d.
        alpha: Whether alpha = 1 + scale a is trained, a from 0, so that weight decay pulls alpha to 1; otherwise it is
            fixed there.
        scale: The rate of alpha beside that of S: a step moves it scale times as far as with a scale of 1 under Adam
            and its kind, and scale^2 times under SGD.
        anchored: Whether d is the offset. If not, alpha = scale a is trained with d = 0, a from 1 / scale, so that
            weight decay pulls alpha to 0, as in Price and Tanner's code.

    Returns:
        The recipe, with the arguments of every sparse recipe (see `SparseRecipe.__call__`).

    >>> from subspace.offsets import Hadamard
    >>> hadamard_plus_sparse = offset_plus_sparse(lambda weight, key: Hadamard(weight))
    >>> net = hadamard_plus_sparse(nn.Linear(100, 100), density=0.01)
    """

    @sparse_recipe(methods.gradient)
    def offset_plus_sparse(target: Target, U: Embedding, key: Key) -> Start:
        """w = alpha d + S, S sparse at random and trained from 0."""
        d = in_layout(offset(target.weight, key), target.layout)
        return _plus_sparse(target.weight, d, U, alpha, scale, anchored)

    return offset_plus_sparse


@sparse_recipe(methods.gradient)
def dctps(target: Target, U: Embedding, key: Key) -> Start:
    """DCTpS (Price and Tanner, ICML 2021): w = alpha DCT + S.

    alpha is trained from 1, to which weight decay pulls it, and S, sparse at random, from 0. With an objective, S is
    where the gradient at w = DCT is largest, since |g s| vanishes at s = 0. For a rate and decay
    of alpha's own see `subspace.add_alpha_group`. Arguments: those of every sparse recipe (see
    `SparseRecipe.__call__`).
    """
    return _plus_sparse(target.weight, in_layout(DCT(target.weight), target.layout), U)


def _plus_sparse(
    weight: Tensor, d: Offset, U: Embedding, alpha: bool = True, scale: float = 1.0, anchored: bool = True
) -> Start:
    if not alpha or U.dim == weight.numel():  # alpha d lies in the span of a full S: U would not be injective
        return d, U, zeros(weight, U.dim)
    theta = zeros(weight, 1 + U.dim)
    theta[0] = 0 if anchored else 1 / scale
    return d if anchored else Zero(weight), DirectSum([Direction(d, scale), U]), theta


def prune(  # noqa: PLR0913
    model: nn.Module,
    saliency: Saliency,
    objective: Objective | None,
    density: float | None = None,
    *,
    dim: int | None = None,
    steps: int = 1,
    budget: Budget | None = None,
    groups: Groups | None = None,
    include: Selection | None = None,
    exclude: Selection | None = None,
    basis: BasisRule | None = None,
) -> nn.Module:
    """Pruning at initialization: d = 0, U = what `methods.supports` keeps, theta = the weights kept.

    Args:
        model: Its tensors are registered in place.
        saliency: Scores the weights, as `methods.snip`.
        objective: A function of the model that returns one number, as a loss; None for a saliency that needs none.
        density: The fraction in (0, 1] of all the chosen weights that train; or give dim.
        dim: How many of them train.
        steps: Rounds of scoring and pruning.
        budget: How the total is divided among the tensors; by default they all compete.
        groups: How the entries of a tensor are spread inside it, as `methods.rows` or `methods.blocks(4)`.
        include: Which tensors, as of `targets`.
        exclude: Which tensors not, as of `targets`.
        basis: weight -> a `Transform`, as `embeddings.DCT`: coefficients are pruned in place of the weights.

    Returns:
        The model.

    Raises:
        FloatingPointError: If a score is not finite; TypeError and ValueError as `methods.supports`. The model is then
            as it was.
    """
    chosen = restrict(saliency, include, exclude)
    bases = bases_of(dict(named_parameters(model, ties=True)), basis, layouts_of(model))
    size: dict[str, Any] = {"density": density, "dim": dim, "steps": steps, "budget": budget, "groups": groups}
    kept = methods.supports(model, chosen, objective, **size, basis=bases)
    return register_supports(model, kept, bases)


def magnitude(model: nn.Module, objective: Objective | None = None, **options: Any) -> nn.Module:
    """Magnitude pruning (Han et al. 2015): `prune` by |w|; the objective is not used. options: those of `prune`."""
    return prune(model, methods.magnitude, objective, **options)


def snip(model: nn.Module, objective: Objective, **options: Any) -> nn.Module:
    """SNIP (Lee et al. 2019): `prune` by |g w| in one shot. options: those of `prune`."""
    return prune(model, methods.snip, objective, **options)


def iterative_snip(model: nn.Module, objective: Objective, *, steps: int = 60, **options: Any) -> nn.Module:
    """Iterative SNIP (de Jorge et al. 2021): `prune` by |g w| in rounds. options: those of `prune`."""
    return prune(model, methods.snip, objective, steps=steps, **options)


def force(model: nn.Module, objective: Objective, **options: Any) -> nn.Module:
    """FORCE (de Jorge et al. 2021): as Iterative SNIP, but pruned weights may return. options: of `methods.force`."""
    bases = bases_of(dict(named_parameters(model, ties=True)), options.pop("basis", None), layouts_of(model))
    return register_supports(model, methods.force(model, objective, **options, basis=bases), bases)


def grasp(model: nn.Module, objective: Objective, **options: Any) -> nn.Module:
    """GraSP (Wang et al. 2020): `prune` by w (H g). options: those of `prune`.

    objective: such as lambda net: cross_entropy(net(x) / 200, y), x and y ten samples of every class.
    """
    return prune(model, methods.grasp, objective, **options)


def synflow(model: nn.Module, objective: Objective, *, steps: int = 100, **options: Any) -> nn.Module:
    """SynFlow (Tanaka et al. 2020): `prune` in rounds, for an objective as `methods.flow(1, 3, 32, 32)`.

    options: those of `prune`.
    """
    return prune(model, methods.synflow, objective, steps=steps, **options)


def imp(
    model: nn.Module,
    train: Callable[[nn.Module], object],
    *,
    density: float | None = None,
    dim: int | None = None,
    **options: Any,
) -> nn.Module:
    """The lottery ticket of iterative magnitude pruning (Frankle and Carbin 2019), rewound to the present weights.

    Args:
        model: Its tensors are registered in place.
        train: train(model) trains a copy in place, once in every round.
        density: The fraction in (0, 1] of all the chosen weights that train; or give dim.
        dim: How many of them train.
        options: Those of `methods.LotteryTicket`.

    Returns:
        The model.

    Raises:
        ValueError: As `methods.LotteryTicket`.
        FloatingPointError: If a trained weight is not finite. The model is then as it was.
    """
    search = methods.LotteryTicket(model, train, **options)
    search.run(density, dim=dim)
    return register_supports(model, search.supports, search.bases)


def set(model: nn.Module, *, budget: Budget = erk, **options: Any) -> nn.Module:
    """The start of SET (Mocanu et al. 2018): `random_pruning` with ERK's budget; train it with a `methods.SET`."""
    return random_pruning(model, budget=budget, **options)


def rigl(model: nn.Module, *, budget: Budget = erk, **options: Any) -> nn.Module:
    """The start of RigL (Evci et al. 2020): `random_pruning` with ERK's budget; train it with a `methods.RigL`."""
    return random_pruning(model, budget=budget, **options)


def dctps_set(model: nn.Module, *, budget: Budget = erk, **options: Any) -> nn.Module:
    """The start of DCTpS with SET: `dctps` with ERK's budget; train it with a `methods.SET`."""
    return dctps(model, budget=budget, **options)


def dctps_rigl(model: nn.Module, *, budget: Budget = erk, **options: Any) -> nn.Module:
    """The start of DCTpS with RigL (Price and Tanner, ICML 2021): `dctps` with ERK's budget; then a `methods.RigL`."""
    return dctps(model, budget=budget, **options)


def random_subspace(  # noqa: PLR0913
    model: nn.Module,
    *,
    density: float | None = None,
    dim: int | None = None,
    seed: int = 0,
    offset: Callable[[Tensor, Key], Offset] | None = None,
    embedding: Callable[..., Embedding] | None = None,
    include: Selection | None = None,
    exclude: Selection | None = None,
    also_train: Selection | None = None,
) -> nn.Module:
    """Random subspace training (Li et al. 2018): one theta for all tensors, from 0.

    The global U, of all the tensors' rows, is Gaussian with every column normalised to length 1. It is stored if it has
    at most 2^29 entries altogether. If not it is drawn again at every pass, which takes minutes, and a warning says so;
    `embedding=SRHT` takes as much time and memory as there are weights, whatever dim is.

    Args:
        model: Its tensors are registered in place.
        density: The length of theta as a fraction in (0, 1] of the number of the chosen weights; or give dim.
        dim: The length of theta.
        seed: Of U and d, folded with each tensor's qualified name.
        offset: (weight, key) -> d, as `lambda weight, key: Pretrained(weight)` to start from the present weights. By
            default a seeded Kaiming initialisation, and the present values of a tensor without two axes (a bias or
            norm), which has no fan.
        embedding: embedding(weight, dim, key=key, of=n) -> the rows of one tensor in the global U of n rows, whose
            columns have about length 1, as `embeddings.SRHT` and `embeddings.Hashed`; by default the Gaussian U.
        include: Which tensors, as of `targets`. (Li et al. train biases too: with include=lambda name, tensor: True, D
            is their 199,210 and 62,006.)
        exclude: Which tensors not, as of `targets`.
        also_train: What trains as it is beside theta, all else being frozen, as of `SparseRecipe.__call__`; () for
            nothing. By default everything trains that did.

    Returns:
        The model.

    Raises:
        TypeError: If the embedding takes no key and of.
        ValueError: If the tensors are on several devices, or some of float64 and some not, and as `targets`. The model
            is then as it was.
    """
    free = within(model, also_train)
    chosen = targets_without(model, free, include, exclude)
    weights = {name: target.weight for name, target in chosen.items()}
    n = sum(w.numel() for w in weights.values())
    k, key = entries(n, density, dim), Key(seed)
    kinds = {name: (at_least_float32(w.dtype), w.device) for name, w in weights.items()}
    if different := [name for name, kind in kinds.items() if kind != next(iter(kinds.values()))]:
        raise ValueError(f"the tensors of one theta must have one dtype and device, got another for {different[0]}")
    keys = {name: key.fold(name) for name in weights}
    parts = _gaussian(weights, keys, k) if embedding is None else rows_of_one(embedding, weights, k, seed)
    starts: dict[str, Start] = {}
    for name, w in weights.items():
        d = in_layout((offset or _kaiming)(w, keys[name].fold("d")), chosen[name].layout)
        starts[name] = d, parts[name], zeros(w, k)
    register_all(model, starts)
    spaces = [space for name, space in subspaces(model) if name in weights]
    share_theta(spaces, spaces[0].theta)
    return model if also_train is None else freeze_others(model, free)


def doped(
    model: nn.Module,
    *,
    density: float | None = None,
    dim: int | None = None,
    seed: int = 0,
    share: float = 0.5,
    include: Selection | None = None,
    exclude: Selection | None = None,
) -> nn.Module:
    """Doping with one factor fixed: d = 0, U of a Kronecker product and of a sparse part, after Thakker et al. (2021).

    B (x) C starts nearest to the weight among those with its norm, C at random and fixed, and S at 0. With both factors
    trained, as in the paper: `methods.dope`.

    Args:
        model: Its tensors are registered in place.
        density: The length of all thetas as a fraction in (0, 1] of the chosen weights; or give dim.
        dim: The length of all thetas; every tensor gets the same density, and B the most that fits into `share` of its
            numbers. A tensor for which no B fits has S alone, at the weights kept.
        seed: Of everything random, folded with each tensor's qualified name.
        share: The part of a tensor's theta that B may take, in (0, 1).
        include: Which tensors, as of `targets`.
        exclude: Which tensors not, as of `targets`.

    Returns:
        The model.

    Raises:
        TypeError: If not exactly one of density and dim is given.
        ValueError: If an argument is out of range; the model is then as it was.
    """
    chosen = targets(model, include, exclude)
    counts = even_counts({name: target.weight for name, target in chosen.items()}, density, dim)
    starts: dict[str, Start] = {}
    for name, (*_, layout, w) in chosen.items():
        key, matrices = Key(seed).fold(name), layout.matrices(w.shape)
        shape = largest_factor(*layout.fans(w.shape), most_of(share, counts[name]) // matrices)
        if shape is None:
            starts[name] = Zero(w), Sparse(w, counts[name], key=key.fold("U")), None
            continue
        product = Kronecker(w, *shape, key=key.fold("C"), layout=layout)
        sparse = Sparse(w, counts[name] - product.dim, key=key.fold("U"))
        B = product.coordinates(w.detach())
        theta = torch.cat([B * (w.detach().norm() / B.norm().clamp(min=TINY)), zeros(w, sparse.dim)])
        starts[name] = Zero(w), DirectSum([product, sparse]), theta
    return register_all(model, starts)


def lottery_subspace(model: nn.Module, trajectory: Trajectory, *, dim: int) -> nn.Module:
    """The lottery subspace (Larsen et al. 2022): the first principal directions of a training that was recorded.

    d is the trajectory's first point, U its directions, and one theta of all its tensors starts at 0. U is stored.

    Args:
        model: With tensors of the trajectory's names and shapes, which are registered in place.
        trajectory: A `methods.Trajectory` of such a model.
        dim: The length of theta, at most the number of the trajectory's independent directions.

    Returns:
        The model.

    Raises:
        ValueError: If there are fewer directions, or the model has no such tensors. The model is then as it was.
    """
    rows, first = trajectory.directions(dim), trajectory.points[0]
    chosen = targets(model, include=lambda name, _: name in first)
    if other := [name for name in first if name not in chosen or chosen[name].weight.shape != first[name].shape]:
        raise ValueError(f"the model must have the trajectory's tensors, got none like {other[0]}")
    n = sum(point.numel() for point in first.values())
    starts: dict[str, Start] = {
        name: (Pretrained(first[name]), Given(target.weight, rows[name], of=n), zeros(target.weight, dim))
        for name, target in chosen.items()
    }
    register_all(model, starts)
    spaces = [space for name, space in subspaces(model) if name in first]
    share_theta(spaces, spaces[0].theta)
    return model


def _gaussian(weights: Mapping[str, Tensor], keys: Mapping[str, Key], k: int) -> dict[str, Embedding]:
    """The rows of each tensor in one Gaussian U with columns of length 1."""
    n = sum(w.numel() for w in weights.values())
    if n * k > STORED:
        warnings.warn(
            f"a Gaussian U of {n:,} x {k:,} entries is drawn again at every pass, which takes about "
            f"{SECONDS_OF_A_STEP * n * k:.0f} s a step: embedding=embeddings.SRHT takes a fraction of that",
            stacklevel=3,
        )
    parts = {
        name: GaussianEmbedding(w, k, key=keys[name].fold("U"), of=n, stored=n * k <= STORED)
        for name, w in weights.items()
    }
    first = next(iter(weights.values()))
    squares = torch.stack([part.column_norms().square() for part in parts.values()])
    scale = squares.sum(0).rsqrt().to(device_for_values(first), at_least_float32(first.dtype))
    return {name: Scaled(part, scale) for name, part in parts.items()}


def _kaiming(weight: Tensor, key: Key) -> Offset:
    return Gaussian(weight, key=key, keep=True) if weight.ndim > 1 else Pretrained(weight)
