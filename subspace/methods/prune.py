"""Pruning at initialization, in one shot or in rounds: from a saliency to the places kept. Nothing is changed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from subspace._base.preserve import replaced
from subspace._base.qualified import named_parameters
from subspace._base.selection import Selection, layouts_of
from subspace.embeddings import Transform
from subspace.methods.budgets import Budget, entries
from subspace.methods.coefficients import Bases, BasisRule, analyse, bases_of, synthesise
from subspace.methods.groups import Groups
from subspace.methods.processes import Group
from subspace.methods.ranking import Supports, choose, require_finite, warn_empty
from subspace.methods.saliencies.base import Objective, Saliency, Scores, gradient


def supports(  # noqa: PLR0913
    model: nn.Module,
    saliency: Saliency,
    objective: Objective | None,
    density: float | None = None,
    *,
    dim: int | None = None,
    steps: int = 1,
    budget: Budget | None = None,
    groups: Groups | None = None,
    basis: BasisRule | Bases | None = None,
) -> Supports:
    """Choose what a saliency keeps, in one shot or in rounds.

    Round t of `steps` keeps the best N density^(t / steps) of those kept before, and scores the network with the
    weights pruned so far set to zero. One round is SNIP, GraSP or magnitude pruning; 100 with `synflow` are SynFlow;
    with `snip` they are Iterative SNIP (de Jorge et al. 2021).

    Args:
        model: It stays as it is.
        saliency: (model, objective) -> scores. All tensors that it scores take part: partial(snip, include=...) scores
            others than the default.
        objective: A function of the model that returns one number, as a loss; None for a saliency that needs none.
        density: The fraction in (0, 1] of all scored entries that is kept; or give dim.
        dim: How many entries are kept.
        steps: How many rounds.
        budget: How the total is divided among the tensors; by default they all compete.
        groups: How the entries of a tensor are spread inside it, as `rows` or `blocks(4)`.
        basis: weight -> a `Transform`, as `embeddings.DCT`: its coefficients are scored, counted and kept in place of
            the weights, at places in the weight's shape.

    Returns:
        The sorted flat places kept of each tensor, by qualified name.

    Raises:
        FloatingPointError: If a score is not finite; it names tensor and round.
        TypeError: If not exactly one of density and dim is given, or the saliency needs an objective.
        ValueError: If an argument is out of range.
    """
    bases = bases_of(dict(named_parameters(model, ties=True)), basis, layouts_of(model))
    score = partial(saliency, model, objective, **({"basis": bases} if bases else {}))
    size = partial(entries, density=density, dim=dim)
    return _rounds(model, score, size, steps, budget, groups, bases)


def force(  # noqa: PLR0913
    model: nn.Module,
    objective: Objective,
    density: float | None = None,
    *,
    dim: int | None = None,
    steps: int = 60,
    budget: Budget | None = None,
    groups: Groups | None = None,
    include: Selection | None = None,
    exclude: Selection | None = None,
    basis: BasisRule | Bases | None = None,
    group: Group = "auto",
) -> Supports:
    """Choose what FORCE keeps (de Jorge et al., "Progressive skeletonization", ICLR 2021): pruned weights may return.

    The score is |g w|, g the gradient at the network as pruned so far, w the dense weight. One round is SNIP. (What
    Price and Tanner's code of DCTpS calls FORCE is Iterative SNIP with 10 rounds: there pruned weights never return.)

    Args:
        model: It stays as it is.
        objective: A function of the model that returns one number, as a loss.
        density: The fraction in (0, 1] of all scored entries that is kept; or give dim.
        dim: How many entries are kept.
        steps: How many rounds.
        budget: How the total is divided among the tensors; by default they all compete.
        groups: How the entries of a tensor are spread inside it, as `rows` or `blocks(4)`.
        include: Which tensors, as of `targets`.
        exclude: Which tensors not, as of `targets`.
        basis: weight -> a `Transform`, as `embeddings.DCT`: its coefficients are scored, counted and kept in place of
            the weights, at places in the weight's shape.
        group: The processes that score one model, as of a `Mover`.

    Returns:
        The sorted flat places kept of each tensor, by qualified name.

    Raises:
        FloatingPointError, TypeError, ValueError: As `supports`.
    """
    weights = {name: w.detach() for name, w in named_parameters(model, ties=True)}
    bases = bases_of(weights, basis, layouts_of(model))
    dense = {name: analyse(w, bases.get(name)) for name, w in weights.items()}

    def score() -> Scores:
        slopes = gradient(model, objective, include=include, exclude=exclude, basis=bases, group=group)
        return {name: slope * dense[name].abs() for name, slope in slopes.items()}

    size = partial(entries, density=density, dim=dim)
    return _rounds(model, score, size, steps, budget, groups, bases, returning=True)


def _rounds(  # noqa: PLR0913
    model: nn.Module,
    score: Callable[[], Scores],
    size: Callable[[int], int],
    steps: int,
    budget: Budget | None,
    groups: Groups | None,
    bases: Bases,
    returning: bool = False,
) -> Supports:
    """size: how many of all weights are kept in the end."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    weights, layouts = dict(named_parameters(model, ties=True)), layouts_of(model)
    kept: Supports = {}
    for step in range(1, steps + 1):
        pruned = {name: _pruned(weights[name].detach(), index, bases.get(name)) for name, index in kept.items()}
        with replaced(weights, pruned):
            scores = score()
        require_finite(scores, f" in round {step} of {steps}")
        numel = sum(s.numel() for s in scores.values())
        total = size(numel)
        now = total if step == steps else round(numel * (total / numel) ** (step / steps))
        kept = choose(scores, now, budget, groups, None if returning or not kept else kept, layouts)
    warn_empty({name: len(index) for name, index in kept.items()}, stacklevel=4)
    return kept


def _pruned(weight: Tensor, index: Tensor, basis: Transform | None) -> Tensor:
    """The weight with all coefficients 0 but those at the places of the index."""
    coefficients = analyse(weight, basis)
    kept = torch.zeros_like(coefficients).flatten()
    kept[index] = coefficients.flatten()[index]
    return synthesise(kept.reshape(weight.shape), basis)
