"""Every named method as one choice of d, U and the start of theta, for a whole model.

Each recipe re-parametrizes the model's chosen tensors in place (`targets`: every conv and linear weight unless
`include` or `exclude` say otherwise) and returns the model; what else trains, biases and norms, stays as it is. Give
exactly one of `density` (a fraction in (0, 1] of the N chosen weights) and `dim` (a number of them): the total is
exact, dim or round(density N), divided among the tensors by `budget`. alpha is trained but not counted. The seed,
folded with each tensor's qualified name, fixes everything random. On an error the model is as it was. Make the
optimizer afterwards.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from subspace.embeddings import Direction, DirectSum, Embedding, Identity, Scaled, Sparse
from subspace.embeddings import Gaussian as GaussianEmbedding
from subspace.embeddings.gaussian import STORED
from subspace.methods.budgets import Budget, epl
from subspace.offsets import DCT, Gaussian, Offset, Pretrained, Zero
from subspace.parametrization import SubspaceParametrization, check, register, subspaces, tie
from subspace.random import Key
from subspace.targets import Selection, targets

Start = tuple[Offset, Embedding, Tensor | None]  # d, U and the first theta, None for the point nearest to the weight


class Recipe(Protocol):
    """What every recipe with a budget takes."""

    def __call__(
        self,
        model: nn.Module,
        *,
        density: float | None = None,
        dim: int | None = None,
        seed: int = 0,
        budget: Budget = epl,
        include: Selection | None = None,
        exclude: Selection | None = None,
    ) -> nn.Module: ...


def ordinary(model: nn.Module, *, include: Selection | None = None, exclude: Selection | None = None) -> nn.Module:
    """Ordinary training: d = 0, U = identity, theta = w."""
    return _register(
        model, {q: (Zero(w), Identity(w), None) for q, (_, _, w) in targets(model, include, exclude).items()}
    )


def _sparse(start: Callable[[Tensor, int, Key], Start]) -> Recipe:
    """The recipe whose tensors, given k entries each by the budget, are start(weight, k, key)."""

    def recipe(
        model: nn.Module,
        *,
        density: float | None = None,
        dim: int | None = None,
        seed: int = 0,
        budget: Budget = epl,
        include: Selection | None = None,
        exclude: Selection | None = None,
    ) -> nn.Module:
        weights = {q: w for q, (_, _, w) in targets(model, include, exclude).items()}
        total = entries(sum(w.numel() for w in weights.values()), density, dim)
        counts = dict(zip(weights, budget([w.shape for w in weights.values()], total), strict=True))
        if empty := [q for q, count in counts.items() if count == 0]:
            warnings.warn(f"the budget of {total} leaves no entry to {', '.join(empty)}", stacklevel=2)
        return _register(model, {q: start(w, counts[q], Key(seed).fold(q)) for q, w in weights.items()})

    recipe.__name__, recipe.__qualname__, recipe.__doc__ = start.__name__, start.__name__, start.__doc__
    return recipe


@_sparse
def random_pruning(weight: Tensor, k: int, key: Key) -> Start:
    """Random pruning at initialization: d = 0, U sparse at random, theta = the weights kept."""
    return Zero(weight), Sparse(weight, k, key=key.fold("U")), None


@_sparse
def freezenet(weight: Tensor, k: int, key: Key) -> Start:
    """FreezeNet (Wimmer et al. 2020) with a random U: d = a seeded Kaiming initialisation, U sparse, theta = 0."""
    return Gaussian(weight, key=key.fold("d"), keep=True), Sparse(weight, k, key=key.fold("U")), weight.new_zeros(k)


@_sparse
def sparse_finetuning(weight: Tensor, k: int, key: Key) -> Start:
    """Sparse fine-tuning (SHiRA, Bhardwaj et al. 2024) at random: d = the present weights, U sparse, theta = 0."""
    return Pretrained(weight), Sparse(weight, k, key=key.fold("U")), weight.new_zeros(k)


@_sparse
def dctps(weight: Tensor, k: int, key: Key) -> Start:
    """DCTpS (Price and Tanner 2021): w = alpha DCT + S, alpha trained from 1, S sparse at random and trained from 0."""
    alpha, s = Direction(DCT(weight)), Sparse(weight, k, key=key.fold("U"))
    if k == weight.numel():  # alpha DCT lies in the span of a full S: U would not be injective
        return DCT(weight), s, weight.new_zeros(k)
    return Zero(weight), DirectSum([alpha, s]), torch.cat([weight.new_ones(1), weight.new_zeros(k)])


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


def entries(numel: int, density: float | None, dim: int | None) -> int:
    """How many of `numel` weights exactly one of density and dim asks for; ValueError outside (0, 1] and [1, numel]."""
    if (density is None) == (dim is None):
        raise TypeError(f"exactly one of density and dim must be given, got density={density} and dim={dim}")
    if density is not None and not 0 < density <= 1:
        raise ValueError(f"density must be in (0, 1], got {density}")
    count = round(density * numel) if density is not None else dim
    if count is None or not 1 <= count <= numel:
        asked = f"dim={dim}" if density is None else f"density={density}, which is {count} entries"
        raise ValueError(f"dim must be in [1, {numel}], got {asked}")
    return count
