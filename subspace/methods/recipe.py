"""What recipes are made of: a start of every tensor, a choice of U, and registering all tensors or none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from subspace._base.dtypes import at_least_float32
from subspace._base.first_values import remember_values
from subspace._base.key import Key
from subspace._base.preserve import replaced
from subspace._base.qualified import named_modules, named_parameters, owner_of
from subspace._base.selection import Selection, targets
from subspace.embeddings import Embedding, Sparse
from subspace.methods.budgets import Budget, entries, epl
from subspace.methods.coefficients import Bases, BasisRule, bases_of, embedding
from subspace.methods.groups import Groups, top_per_group
from subspace.methods.prune import supports
from subspace.methods.ranking import Supports, warn_empty
from subspace.methods.saliencies.base import Objective, Saliency, require_values
from subspace.offsets import Offset, Zero
from subspace.parametrization import SubspaceParametrization, prepare

Start = tuple[Offset, Embedding, Tensor | None]  # d, U and the first theta, None for the point nearest to the weight
StartRule = Callable[[Tensor, Embedding, Key], Start]  # of a weight, the U chosen for it, and the tensor's key


class SparseRecipe:
    """The recipe that registers each tensor with start(weight, U, key), U sparse.

    U is random, divided by `budget`; or, given an objective, chosen at the recipe's first w by a saliency.
    """

    def __init__(self, start: StartRule, saliency: Saliency) -> None:
        self.start, self.saliency = start, saliency
        self.__name__, self.__qualname__, self.__doc__ = start.__name__, start.__name__, start.__doc__

    def __call__(  # noqa: PLR0913
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
        include: Selection | None = None,
        exclude: Selection | None = None,
        basis: BasisRule | None = None,
    ) -> nn.Module:
        """Register the chosen tensors of a model.

        Args:
            model: Its tensors are registered in place.
            density: The fraction in (0, 1] of all the chosen weights that train; or give dim.
            dim: How many of them train.
            seed: Of everything random, folded with each tensor's qualified name.
            budget: How the total is divided among the tensors: EPL by default, or for an objective no budget, and then
                all tensors compete.
            groups: How the entries of a tensor are spread inside it, as `methods.rows` or `methods.blocks(4)`.
            objective: A function of the model that returns one number, as a loss; U is then chosen by a saliency.
            saliency: In place of the recipe's own.
            include: Which tensors, as of `targets`.
            exclude: Which tensors not, as of `targets`.
            basis: weight -> a `Transform`, as `embeddings.DCT`: U is sparse in its coefficients, not in the weights.

        Returns:
            The model.

        Raises:
            TypeError: If not exactly one of density and dim is given.
            ValueError: If one of them is out of range, or as `targets` and `methods.supports`; the model is then as it
                was.
        """
        weights = {name: target.weight for name, target in targets(model, include, exclude).items()}
        keys = {name: Key(seed).fold(name) for name in weights}
        bases = bases_of(weights, basis)
        total = entries(sum(w.numel() for w in weights.values()), density, dim)
        if objective is None:
            U = _random(weights, keys, total, budget or epl, groups)
        else:
            chosen = restrict(saliency or self.saliency, include, exclude)
            with replaced(weights, self._first(weights, keys)):
                kept = supports(model, chosen, objective, dim=total, budget=budget, groups=groups, basis=bases)
            U = {name: Sparse(w, index=kept[name]) for name, w in weights.items()}
        embeddings = {name: embedding(sparse, bases.get(name)) for name, sparse in U.items()}
        return register_all(model, {name: self.start(w, embeddings[name], keys[name]) for name, w in weights.items()})

    def _first(self, weights: Mapping[str, Tensor], keys: Mapping[str, Key]) -> dict[str, Tensor]:
        """The w that training starts from, if U takes every entry."""
        require_values(weights)
        first = {}
        for name, weight in weights.items():
            everything = Sparse(weight, index=torch.arange(weight.numel()))
            offset, embedding, theta = self.start(weight, everything, keys[name])
            with torch.no_grad():
                first[name] = (
                    weight if theta is None else SubspaceParametrization(offset, embedding, weight.dtype)(theta)
                )
        return first


def sparse_recipe(saliency: Saliency) -> Callable[[StartRule], SparseRecipe]:
    """Decorate the start of a recipe: the recipe has its name and docstring. saliency: the recipe's own."""
    return partial(SparseRecipe, saliency=saliency)


def zeros(weight: Tensor, dim: int) -> Tensor:
    """Where a theta starts: on the weight's device or, as it has values, on the CPU for one on meta."""
    return torch.zeros(dim, dtype=at_least_float32(weight.dtype), device=device_for_values(weight))


def device_for_values(weight: Tensor) -> torch.device:
    """The weight's device; the CPU for a weight on the meta device, which holds no values."""
    return torch.device("cpu") if weight.is_meta else weight.device


def register_all(model: nn.Module, starts: Mapping[str, Start]) -> nn.Module:
    """Register every tensor, once all of them have passed the checks; return the model."""
    prepared = {name: prepare(*owner_of(model, name), d, U) for name, (d, U, _) in starts.items()}
    for _, module in named_modules(model):
        remember_values(module)
    for name, (_, _, theta) in starts.items():
        prepared[name].commit(theta)
    return model


def register_supports(model: nn.Module, kept: Supports, bases: Bases | None = None) -> nn.Module:
    """Register d = 0, U = what is kept, theta = the weights kept, or their coefficients; return the model."""
    weights = dict(named_parameters(model))
    starts: dict[str, Start] = {}
    for name, index in kept.items():
        U = embedding(Sparse(weights[name], index=index), (bases or {}).get(name))
        starts[name] = Zero(weights[name]), U, None
    return register_all(model, starts)


def restrict(saliency: Saliency, include: Selection | None, exclude: Selection | None) -> Saliency:
    """Bind the choice of tensors to a saliency; where none is given the saliency need not take these arguments."""
    given = {"include": include, "exclude": exclude}
    return partial(saliency, **{name: value for name, value in given.items() if value is not None})


def _random(
    weights: Mapping[str, Tensor], keys: Mapping[str, Key], total: int, budget: Budget, groups: Groups | None
) -> dict[str, Sparse]:
    counts = dict(zip(weights, budget([w.shape for w in weights.values()], total), strict=True))
    warn_empty(counts, stacklevel=4)
    return {name: _random_sparse(w, counts[name], keys[name].fold("U"), groups) for name, w in weights.items()}


def _random_sparse(weight: Tensor, k: int, key: Key, groups: Groups | None) -> Sparse:
    if groups is None:
        return Sparse(weight, k, key=key)
    scores = torch.from_numpy(key.uniform(weight.numel()))
    return Sparse(weight, index=top_per_group(scores, k, groups(weight.shape)))
