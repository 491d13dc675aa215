"""Every named method as one choice of d, U and the start of theta, for a whole model.

Each recipe re-parametrizes the model's chosen tensors in place (`targets`: every conv and linear weight unless
`include` or `exclude` say otherwise) and returns the model; what else trains, biases and norms, stays as it is. Give
exactly one of `density` (a fraction in (0, 1] of the N chosen weights) and `dim` (a number of them): the total is
exact, dim or round(density N), divided among the tensors by `budget` and inside them by `groups`. alpha is trained but
not counted. The seed, folded with each tensor's qualified name, fixes everything random. On an error the model is as it
was. Make the optimizer afterwards.

A model on the meta device is registered without its weights ever being there, by every recipe that asks nothing of
their values; `initialize` gives it its start.

Recipes that choose U by a saliency take an `objective`, a function of the model that returns one number, as lambda net:
cross_entropy(net(x), y); without a budget all tensors then compete.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from subspace import methods
from subspace._base.key import Key
from subspace._base.selection import Selection, targets
from subspace.embeddings import Direction, DirectSum, Identity, Scaled, Sparse
from subspace.embeddings import Gaussian as GaussianEmbedding
from subspace.embeddings.gaussian import STORED
from subspace.methods.budgets import Budget, entries, erk
from subspace.methods.groups import Groups
from subspace.methods.recipe import (
    SparseRecipe,
    Start,
    device_for_values,
    register_all,
    register_supports,
    restrict,
    sparse_recipe,
    zeros,
)
from subspace.methods.saliencies.base import Objective, Saliency
from subspace.offsets import DCT, Gaussian, Offset, Pretrained, Zero
from subspace.parametrization import share_theta, subspaces


def ordinary(model: nn.Module, *, include: Selection | None = None, exclude: Selection | None = None) -> nn.Module:
    """Ordinary training: d = 0, U = identity, theta = w."""
    return register_all(
        model, {q: (Zero(w), Identity(w), None) for q, (_, _, w) in targets(model, include, exclude).items()}
    )


@sparse_recipe(methods.snip)
def random_pruning(weight: Tensor, U: Sparse, key: Key) -> Start:
    """Random pruning at initialization: d = 0, U sparse at random, theta = the weights kept."""
    return Zero(weight), U, None


@sparse_recipe(methods.snip)
def freezenet(weight: Tensor, U: Sparse, key: Key) -> Start:
    """FreezeNet (Wimmer et al. 2020): d = a seeded Kaiming initialisation, U sparse, theta = 0.

    With an objective, U is the paper's, by SNIP, |g w| at w = d; without one, random.
    """
    return Gaussian(weight, key=key.fold("d"), keep=True), U, zeros(weight, U.dim)


@sparse_recipe(methods.gradient)
def sparse_finetuning(weight: Tensor, U: Sparse, key: Key) -> Start:
    """Sparse fine-tuning (SHiRA, Bhardwaj et al. 2024): d = the present weights, U sparse, theta = 0.

    U is random or, with an objective, where the gradient at w = d is largest, since |g theta| vanishes at theta = 0.
    """
    return Pretrained(weight), U, zeros(weight, U.dim)


def offset_plus_sparse(offset: Callable[[Tensor, Key], Offset], *, alpha: bool = True) -> SparseRecipe:
    """The recipe w = alpha d + S for any d: DCTpS with offset(weight, key) in place of its DCT.

    alpha: whether it is trained, from 1; otherwise it is fixed there. With an objective, S is where the gradient at
    w = d is largest, since |g s| vanishes at s = 0. A weight with a full S has no alpha.

    >>> from subspace.offsets import Hadamard
    >>> hadamard_plus_sparse = offset_plus_sparse(lambda weight, key: Hadamard(weight))
    >>> net = hadamard_plus_sparse(nn.Linear(100, 100), density=0.01)
    """

    @sparse_recipe(methods.gradient)
    def offset_plus_sparse(weight: Tensor, U: Sparse, key: Key) -> Start:
        """w = alpha d + S, S sparse at random and trained from 0."""
        return _plus_sparse(weight, offset(weight, key), U, alpha)

    return offset_plus_sparse


@sparse_recipe(methods.gradient)
def dctps(weight: Tensor, U: Sparse, key: Key) -> Start:
    """DCTpS (Price and Tanner 2021): w = alpha DCT + S, alpha trained from 1, S sparse at random and trained from 0.

    With an objective, S is where the gradient at w = DCT is largest, since |g s| vanishes at s = 0.
    """
    return _plus_sparse(weight, DCT(weight), U, True)


def _plus_sparse(weight: Tensor, d: Offset, U: Sparse, alpha: bool) -> Start:
    if not alpha or U.dim == weight.numel():  # alpha d lies in the span of a full S: U would not be injective
        return d, U, zeros(weight, U.dim)
    theta = zeros(weight, 1 + U.dim)
    theta[0] = 1
    return Zero(weight), DirectSum([Direction(d), U]), theta


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
) -> nn.Module:
    """Pruning at initialization: d = 0, U = what `methods.supports` keeps, theta = the weights kept."""
    chosen = restrict(saliency, include, exclude)
    kept = methods.supports(model, chosen, objective, density, dim=dim, steps=steps, budget=budget, groups=groups)
    return register_supports(model, kept)


def magnitude(model: nn.Module, objective: Objective | None = None, **options: Any) -> nn.Module:
    """Magnitude pruning: `prune` by |w|; the objective is not used."""
    return prune(model, methods.magnitude, objective, **options)


def snip(model: nn.Module, objective: Objective, **options: Any) -> nn.Module:
    """SNIP (Lee et al. 2019): `prune` by |g w| in one shot."""
    return prune(model, methods.snip, objective, **options)


def iterative_snip(model: nn.Module, objective: Objective, *, steps: int = 60, **options: Any) -> nn.Module:
    """Iterative SNIP (de Jorge et al. 2021): `prune` by |g w| in rounds."""
    return prune(model, methods.snip, objective, steps=steps, **options)


def force(model: nn.Module, objective: Objective, **options: Any) -> nn.Module:
    """FORCE (de Jorge et al. 2021), `methods.force`: as Iterative SNIP, but pruned weights may return."""
    return register_supports(model, methods.force(model, objective, **options))


def grasp(model: nn.Module, objective: Objective, **options: Any) -> nn.Module:
    """GraSP (Wang et al. 2020): `prune` by w (H g), for an objective such as cross_entropy(net(x) / 200, y)."""
    return prune(model, methods.grasp, objective, **options)


def synflow(model: nn.Module, objective: Objective, *, steps: int = 100, **options: Any) -> nn.Module:
    """SynFlow (Tanaka et al. 2020): `prune` in rounds, for an objective such as `methods.flow(1, 3, 32, 32)`."""
    return prune(model, methods.synflow, objective, steps=steps, **options)


def imp(
    model: nn.Module,
    train: Callable[[nn.Module], object],
    *,
    density: float | None = None,
    dim: int | None = None,
    **options: Any,
) -> nn.Module:
    """The lottery ticket found by iterative magnitude pruning, rewound to the present weights; `methods.LotteryTicket`.

    train(model) trains a copy in place, once in every round.
    """
    search = methods.LotteryTicket(model, train, **options)
    search.run(density, dim=dim)
    return register_supports(model, search.supports)


def set(model: nn.Module, *, budget: Budget = erk, **options: Any) -> nn.Module:
    """The start of SET (Mocanu et al. 2018): `random_pruning`, by ERK; train it with a `methods.SET`."""
    return random_pruning(model, budget=budget, **options)


def rigl(model: nn.Module, *, budget: Budget = erk, **options: Any) -> nn.Module:
    """The start of RigL (Evci et al. 2020): `random_pruning`, by ERK; train it with a `methods.RigL`."""
    return random_pruning(model, budget=budget, **options)


def dctps_set(model: nn.Module, *, budget: Budget = erk, **options: Any) -> nn.Module:
    """The start of DCTpS + SET: `dctps`, by ERK; train it with a `methods.SET`."""
    return dctps(model, budget=budget, **options)


def dctps_rigl(model: nn.Module, *, budget: Budget = erk, **options: Any) -> nn.Module:
    """The start of DCTpS + RigL (Price and Tanner 2021): `dctps`, by ERK; train it with a `methods.RigL`."""
    return dctps(model, budget=budget, **options)


def random_subspace(
    model: nn.Module,
    *,
    density: float | None = None,
    dim: int | None = None,
    seed: int = 0,
    offset: Callable[[Tensor, Key], Offset] | None = None,
    include: Selection | None = None,
    exclude: Selection | None = None,
) -> nn.Module:
    """Random subspace training (Li et al. 2018): one theta for all tensors, from 0.

    d is offset(weight, key), as `lambda weight, key: Pretrained(weight)` to start from the present weights; by default
    a seeded Kaiming initialisation, and the present values of a tensor without two axes (a bias or norm), which has no
    fan. (Li et al. train biases too: with include=lambda name, tensor: True, D is their 199,210 and 62,006.)

    The global U, of all the tensors' rows, is Gaussian with every column normalised to length 1. It is stored if it has
    at most 2^29 entries altogether, and drawn again at every pass if not.
    """
    weights = {q: w for q, (_, _, w) in targets(model, include, exclude).items()}
    n = sum(w.numel() for w in weights.values())
    k, key = entries(n, density, dim), Key(seed)
    parts = {
        q: GaussianEmbedding(w, k, key=key.fold(q).fold("U"), of=n, stored=n * k <= STORED) for q, w in weights.items()
    }
    first = next(iter(weights.values()))
    if different := [q for q, w in weights.items() if (w.dtype, w.device) != (first.dtype, first.device)]:
        raise ValueError(f"the tensors of one theta must have one dtype and device, got another for {different[0]}")
    squares = torch.stack([part.column_norms().square() for part in parts.values()])
    scale = squares.sum(0).rsqrt().to(device_for_values(first), first.dtype)
    starts: dict[str, Start] = {}
    for q, w in weights.items():
        d = (offset or _kaiming)(w, key.fold(q).fold("d"))
        starts[q] = d, Scaled(parts[q], scale), zeros(w, k)
    register_all(model, starts)
    spaces = [space for q, space in subspaces(model) if q in weights]
    share_theta(spaces, spaces[0].theta)
    return model


def _kaiming(weight: Tensor, key: Key) -> Offset:
    return Gaussian(weight, key=key, keep=True) if weight.ndim > 1 else Pretrained(weight)
