"""Every named method as one choice of d, U and the start of theta, for a whole model.

Each recipe re-parametrizes the model's chosen tensors in place (`targets`: every conv and linear weight unless
`include` or `exclude` say otherwise) and returns the model; what else trains, biases and norms, stays as it is. Give
exactly one of `density` (a fraction in (0, 1] of the N chosen weights) and `dim` (a number of them): the total is
exact, dim or round(density N), divided among the tensors by `budget` and inside them by `groups`. alpha is trained but
not counted. The seed, folded with each tensor's qualified name, fixes everything random. On an error the model is as it
was. Make the optimizer afterwards.

Recipes that choose U by a saliency take an `objective`, a function of the model that returns one number, as lambda net:
cross_entropy(net(x), y); without a budget all tensors then compete.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from subspace import methods
from subspace.embeddings import Direction, DirectSum, Embedding, Identity, Scaled, Sparse
from subspace.embeddings import Gaussian as GaussianEmbedding
from subspace.embeddings.gaussian import STORED
from subspace.methods.budgets import Budget, entries, epl, erk
from subspace.methods.groups import Groups, spread
from subspace.methods.saliency import Objective, Saliency, replaced
from subspace.methods.select import Supports, warn_empty
from subspace.offsets import DCT, Gaussian, Offset, Pretrained, Zero
from subspace.parametrization import SubspaceParametrization, check, register, subspaces, tie
from subspace.random import Key
from subspace.targets import Selection, targets

Start = tuple[Offset, Embedding, Tensor | None]  # d, U and the first theta, None for the point nearest to the weight


class Recipe(Protocol):
    """What every recipe with a sparse U takes.

    U is random, divided by `budget` (EPL by default); or, given an objective, chosen by `saliency` in so many `steps`,
    scored at the recipe's first w, with every entry in U, and of all tensors together unless there is a budget.
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
        steps: int = 1,
        include: Selection | None = None,
        exclude: Selection | None = None,
    ) -> nn.Module: ...


def ordinary(model: nn.Module, *, include: Selection | None = None, exclude: Selection | None = None) -> nn.Module:
    """Ordinary training: d = 0, U = identity, theta = w."""
    return _register(
        model, {q: (Zero(w), Identity(w), None) for q, (_, _, w) in targets(model, include, exclude).items()}
    )


def _sparse(default: Saliency) -> Callable[[Callable[[Tensor, Sparse, Key], Start]], Recipe]:
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
            steps: int = 1,
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
                first = {
                    q: _first(w, start(w, Sparse(w, index=torch.arange(w.numel())), keys[q]))
                    for q, w in weights.items()
                }
                chosen = _narrowed(saliency or default, include, exclude)
                with replaced(weights, first):
                    kept = methods.supports(
                        model, chosen, objective, dim=total, steps=steps, budget=budget, groups=groups
                    )
                U = {q: Sparse(w, index=kept[q]) for q, w in weights.items()}
            return _register(model, {q: start(w, U[q], keys[q]) for q, w in weights.items()})

        recipe.__name__, recipe.__qualname__, recipe.__doc__ = start.__name__, start.__name__, start.__doc__
        return recipe

    return make


@_sparse(methods.snip)
def random_pruning(weight: Tensor, U: Sparse, key: Key) -> Start:
    """Random pruning at initialization: d = 0, U sparse at random, theta = the weights kept."""
    return Zero(weight), U, None


@_sparse(methods.snip)
def freezenet(weight: Tensor, U: Sparse, key: Key) -> Start:
    """FreezeNet (Wimmer et al. 2020): d = a seeded Kaiming initialisation, U sparse, theta = 0.

    With an objective, U is the paper's, by SNIP, |g w| at w = d; without one, random.
    """
    return Gaussian(weight, key=key.fold("d"), keep=True), U, weight.new_zeros(U.dim)


@_sparse(methods.gradient)
def sparse_finetuning(weight: Tensor, U: Sparse, key: Key) -> Start:
    """Sparse fine-tuning (SHiRA, Bhardwaj et al. 2024): d = the present weights, U sparse, theta = 0.

    U is random or, with an objective, where the gradient at w = d is largest, since |g theta| vanishes at theta = 0.
    """
    return Pretrained(weight), U, weight.new_zeros(U.dim)


@_sparse(methods.gradient)
def dctps(weight: Tensor, U: Sparse, key: Key) -> Start:
    """DCTpS (Price and Tanner 2021): w = alpha DCT + S, alpha trained from 1, S sparse at random and trained from 0.

    With an objective, S is where the gradient at w = DCT is largest, since |g s| vanishes at s = 0.
    """
    if U.dim == weight.numel():  # alpha DCT lies in the span of a full S: U would not be injective
        return DCT(weight), U, weight.new_zeros(U.dim)
    theta = torch.cat([weight.new_ones(1), weight.new_zeros(U.dim)])
    return Zero(weight), DirectSum([Direction(DCT(weight)), U]), theta


def prune(
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
    chosen = _narrowed(saliency, include, exclude)
    kept = methods.supports(model, chosen, objective, density, dim=dim, steps=steps, budget=budget, groups=groups)
    return _keep(model, kept)


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
    return _keep(model, methods.force(model, objective, **options))


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
    return _keep(model, search.supports)


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
    include: Selection | None = None,
    exclude: Selection | None = None,
) -> nn.Module:
    """Random subspace training (Li et al. 2018): one theta for all tensors, d a seeded Kaiming initialisation.

    The global U, of all the tensors' rows, is Gaussian with every column normalised to length 1; theta starts at 0. U
    is stored if it has at most 2^29 entries altogether, and drawn again at every pass if not.
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
    scale = torch.stack([part.column_norms().square() for part in parts.values()]).sum(0).rsqrt().to(first)
    starts: dict[str, Start] = {}
    for q, w in weights.items():
        starts[q] = Gaussian(w, key=key.fold(q).fold("d"), keep=True), Scaled(parts[q], scale), w.new_zeros(k)
    _register(model, starts)
    spaces = [space for q, space in subspaces(model) if q in weights]
    tie(spaces, spaces[0].theta)
    return model


def _register(model: nn.Module, starts: dict[str, Start]) -> nn.Module:
    """Register every tensor, once all of them have passed the checks."""
    modules = dict(model.named_modules())
    owners = {q: (modules[q.rpartition(".")[0]], q.rpartition(".")[2]) for q in starts}
    for q, (offset, embedding, _) in starts.items():
        check(*owners[q], SubspaceParametrization(offset, embedding))
    for q, (offset, embedding, theta) in starts.items():
        register(*owners[q], offset, embedding, theta)
    return model


def _keep(model: nn.Module, kept: Supports) -> nn.Module:
    """d = 0, U = what is kept, theta = the weights kept."""
    weights = dict(model.named_parameters())
    return _register(model, {q: (Zero(weights[q]), Sparse(weights[q], index=i), None) for q, i in kept.items()})


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


def _narrowed(saliency: Saliency, include: Selection | None, exclude: Selection | None) -> Saliency:
    given = {"include": include, "exclude": exclude}
    return partial(saliency, **{name: value for name, value in given.items() if value is not None})
