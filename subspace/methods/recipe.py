"""What recipes are made of: a start of every tensor, a choice of U, and registering all tensors or none."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from subspace._base.dtypes import at_least_float32
from subspace._base.first_values import remember_values
from subspace._base.key import Key
from subspace._base.preserve import replaced
from subspace._base.qualified import named_modules, named_parameters, owner_of
from subspace._base.selection import Selection, Target, targets_without, within
from subspace.embeddings import Embedding, Sparse
from subspace.methods.budgets import Budget, divide, entries, epl
from subspace.methods.coefficients import Bases, BasisRule, bases_of, embedding
from subspace.methods.groups import Groups, places, top_per_group
from subspace.methods.prune import supports
from subspace.methods.ranking import Supports, warn_empty
from subspace.methods.saliencies.base import Objective, Saliency, require_values
from subspace.offsets import Offset, Zero
from subspace.parametrization import SubspaceParametrization, prepare, share_theta, subspaces

Start = tuple[Offset, Embedding, Tensor | None]  # d, U and the first theta, None for the point nearest to the weight
StartRule = Callable[[Target, Embedding, Key], Start]  # of a tensor, the U chosen for it, and the tensor's key


class SparseRecipe:
    """The recipe that registers each tensor with start(target, U, key), U sparse.

    U is random, divided by `budget`; or, given an objective, chosen at the recipe's first w by a saliency. freezes:
    whether nothing else trains unless it is told to, as pretrained models want it.
    """

    def __init__(self, start: StartRule, saliency: Saliency, freezes: bool = False) -> None:
        self.start, self.saliency, self.freezes = start, saliency, freezes
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
        also_train: Selection | None = None,
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
            saliency: In place of the recipe's own; one that needs no objective, as `methods.magnitude`, by itself.
            include: Which tensors, as of `targets`.
            exclude: Which tensors not, as of `targets`.
            basis: weight -> a `Transform`, as `embeddings.DCT`: U is sparse in its coefficients, not in the weights.
            also_train: What trains as it is, beside theta: a new head, as ["classifier"], or ["bias"]; suffixes of
                modules or tensors, or the other kinds of `include`; () for nothing. It is not chosen, and all else is
                frozen. By default everything trains that did; nothing, if the recipe is one for pretrained models.

        Returns:
            The model.

        Raises:
            TypeError: If not exactly one of density and dim is given.
            ValueError: If one of them is out of range, or as `targets` and `methods.supports`; the model is then as it
                was.
        """
        free = within(model, also_train)
        chosen = targets_without(model, free, include, exclude)
        weights = {name: target.weight for name, target in chosen.items()}
        keys = {name: Key(seed).fold(name) for name in weights}
        bases = bases_of(weights, basis, {name: target.layout for name, target in chosen.items()})
        total = entries(sum(w.numel() for w in weights.values()), density, dim)
        if objective is None and saliency is None:
            U = _random(chosen, keys, total, budget or epl, groups)
        else:
            told = (include, exclude, also_train) != (None, None, None)
            scores = restrict(saliency or self.saliency, (lambda name, _: name in chosen) if told else None, None)
            with replaced(weights, self._first(chosen, keys)):
                kept = supports(model, scores, objective, dim=total, budget=budget, groups=groups, basis=bases)
            U = {name: Sparse(w, index=kept[name]) for name, w in weights.items()}
        embeddings = {name: embedding(sparse, bases.get(name)) for name, sparse in U.items()}
        register_all(model, {name: self.start(target, embeddings[name], keys[name]) for name, target in chosen.items()})
        return freeze_others(model, free) if self.freezes or also_train is not None else model

    def _first(self, chosen: Mapping[str, Target], keys: Mapping[str, Key]) -> dict[str, Tensor]:
        """The w that training starts from, if U takes every entry."""
        require_values({name: target.weight for name, target in chosen.items()})
        first = {}
        for name, target in chosen.items():
            everything = Sparse(target.weight, index=torch.arange(target.weight.numel()))
            offset, embedding, theta = self.start(target, everything, keys[name])
            with torch.no_grad():
                built = SubspaceParametrization(offset, embedding, target.weight.dtype)
                first[name] = target.weight if theta is None else built(theta)
        return first


def sparse_recipe(saliency: Saliency, freezes: bool = False) -> Callable[[StartRule], SparseRecipe]:
    """Decorate the start of a recipe, which has its name and docstring; saliency and freezes as of `SparseRecipe`."""
    return partial(SparseRecipe, saliency=saliency, freezes=freezes)


def rows_of_one(
    embedding: Callable[..., Embedding], weights: Mapping[str, Tensor], dim: int, seed: int
) -> dict[str, Embedding]:
    """The rows of each tensor in one U for all; TypeError for an embedding that several tensors cannot share."""
    n, root = sum(w.numel() for w in weights.values()), Key(seed)
    try:
        return {name: embedding(w, dim, key=root.fold(name).fold("U"), of=n) for name, w in weights.items()}
    except TypeError as error:
        raise TypeError(
            f"embedding must take (weight, dim, key=, of=), as embeddings.SRHT and Hashed do, got: {error}"
        ) from error


def freeze_others(model: nn.Module, free: Container[str]) -> nn.Module:
    """Freeze every Parameter that is neither a theta nor named; return the model."""
    thetas = {id(space.theta) for _, space in subspaces(model)}
    kept = thetas | {id(p) for name, p in named_parameters(model, ties=True) if name in free}
    for parameter in model.parameters():
        if id(parameter) not in kept:
            parameter.requires_grad_(False)
    return model


def zeros(weight: Tensor, dim: int) -> Tensor:
    """Where a theta starts: on the weight's device or, as it has values, on the CPU for one on meta."""
    return torch.zeros(dim, dtype=at_least_float32(weight.dtype), device=device_for_values(weight))


def device_for_values(weight: Tensor) -> torch.device:
    """The weight's device; the CPU for a weight on the meta device, which holds no values."""
    return torch.device("cpu") if weight.is_meta else weight.device


def register_all(model: nn.Module, starts: Mapping[str, Start]) -> nn.Module:
    """Register every tensor, once all of them have passed the checks; return the model."""
    prepared = {name: prepare(*owner_of(model, name), d, U, model) for name, (d, U, _) in starts.items()}
    modules = {registration.module for registration in prepared.values()}
    for name, registration in prepared.items():
        if mixed := [other for module, other in registration.tied if module in modules]:
            raise ValueError(f"{name} must not be tied to a tensor of a module with another chosen, got {mixed[0]}")
    for _, module in named_modules(model):
        remember_values(module)
    for name, (_, _, theta) in starts.items():
        prepared[name].commit(theta)
    return model


def register_sharing(model: nn.Module, groups: Iterable[Mapping[str, Start]]) -> nn.Module:
    """Register every tensor, those of one group with one theta, the first one's; return the model."""
    groups = list(groups)
    register_all(model, {name: start for group in groups for name, start in group.items()})
    spaces = dict(subspaces(model))
    for group in groups:
        shared = [spaces[name] for name in group]
        share_theta(shared, shared[0].theta)
    return model


def register_supports(model: nn.Module, kept: Supports, bases: Bases | None = None) -> nn.Module:
    """Register d = 0, U = what is kept, theta = the weights kept, or their coefficients; return the model."""
    weights = dict(named_parameters(model, ties=True))
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
    chosen: Mapping[str, Target], keys: Mapping[str, Key], total: int, budget: Budget, groups: Groups | None
) -> dict[str, Sparse]:
    layouts = [target.layout for target in chosen.values()]
    counts = divide(budget, [target.weight.shape for target in chosen.values()], total, layouts)
    named = dict(zip(chosen, counts, strict=True))
    warn_empty(named, stacklevel=4)
    return {name: _random_sparse(target, named[name], keys[name].fold("U"), groups) for name, target in chosen.items()}


def _random_sparse(target: Target, k: int, key: Key, groups: Groups | None) -> Sparse:
    weight = target.weight
    if groups is None:
        return Sparse(weight, k, key=key)
    scores = torch.from_numpy(key.uniform(weight.numel()))
    return Sparse(weight, index=top_per_group(scores, k, places(groups, weight.shape, target.layout)))
