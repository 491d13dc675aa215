"""Saliency: a score for every entry of every chosen weight, from a model and an objective; the highest are kept.

An objective is any function of the model that returns one number: it holds the data and the loss, so that they can be
anything. Scoring leaves the model as it was, to the bit: weights, buffers, gradients, modes, and torch's random state.
Of several processes that hold one model each has an objective of its own, as of its own batch: the gradients that
scores are made of are then the means of theirs, and what they keep is the same.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction

from subspace._base.dtypes import at_least_float32
from subspace._base.preserve import preserved
from subspace._base.qualified import named_modules
from subspace._base.quantised import is_quantised
from subspace._base.selection import Selection, targets
from subspace.methods.coefficients import Bases, BasisRule, bases_of, differentiable
from subspace.methods.processes import Group, average, require_same, together, unsynced

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Objective = Callable[[nn.Module], Tensor]  # e.g. lambda net: cross_entropy(net(x), y)
Scores = dict[str, Tensor]  # by qualified name, shaped like the weight
Saliency = Callable[[nn.Module, Any], Scores]  # (model, objective), which some do not need
Weights = Mapping[str, Tensor]  # by qualified name: weights, or their coefficients in a basis, in their shape


class TargetSaliency(Protocol):
    """A saliency of the weights that `targets` chooses."""

    def __call__(
        self,
        model: nn.Module,
        objective: Objective | None = None,
        *,
        include: Selection | None = None,
        exclude: Selection | None = None,
        basis: BasisRule | Bases | None = None,
        group: Group = "auto",
    ) -> Scores: ...


def saliency(score: Callable[[nn.Module, Objective | None, Weights], Scores]) -> TargetSaliency:
    """Make a saliency of a function of the chosen weights, as a decorator.

    Args:
        score: (model, objective, weights) -> a score for every entry of every weight, by qualified name. The weights
            require gradients; whatever it does to the model is undone. With a basis they are the weights' coefficients.

    Returns:
        The saliency: (model, objective, include=, exclude=, basis=, group=) -> scores. group: the processes that score
        one model, as of a `Mover`; RuntimeError where their weights or their scores are not the same.
    """

    def scored(
        model: nn.Module,
        objective: Objective | None = None,
        *,
        include: Selection | None = None,
        exclude: Selection | None = None,
        basis: BasisRule | Bases | None = None,
        group: Group = "auto",
    ) -> Scores:
        chosen = targets(model, include, exclude)
        weights = {name: target.weight for name, target in chosen.items()}
        layouts = {name: target.layout for name, target in chosen.items()}
        require_values(weights)
        processes, device = together(model, group), next(iter(weights.values())).device
        require_same(weights, "the weights that are scored", processes, device)
        with preserved(model), torch.enable_grad(), unsynced(model), _scoring(processes):
            for weight in weights.values():
                weight.requires_grad_(True)
            with differentiable(model, weights, bases_of(weights, basis, layouts)) as coefficients:
                scores = {name: s.detach() for name, s in score(model, objective, coefficients).items()}
        require_same(scores, "scores", processes, device)
        return scores

    for attribute in ("__module__", "__name__", "__qualname__", "__doc__"):
        setattr(scored, attribute, getattr(score, attribute))
    return scored


def require_values(weights: Mapping[str, Tensor]) -> None:
    """Raise ValueError naming a weight on the meta device, where none has values, or one that is quantised."""
    if empty := [name for name, weight in weights.items() if weight.is_meta]:
        raise ValueError(f"{empty[0]} must have values for what is asked, got a weight on the meta device")
    if quantised := [name for name, weight in weights.items() if is_quantised(weight)]:
        raise ValueError(f"{quantised[0]} must be of plain values for what is asked, got a quantised weight")


def evaluate(objective: Objective | None, model: nn.Module) -> Tensor:
    """objective(model), of shape (); TypeError if there is none, ValueError if it is not one number with a gradient."""
    if objective is None:
        raise TypeError("objective must be a function of the model, got None")
    value = objective(model)
    if value.numel() != 1 or not value.requires_grad:
        got = "a constant" if value.numel() == 1 else f"shape {tuple(value.shape)}"
        raise ValueError(f"objective must return one number that depends on the weights, got {got}")
    return value.reshape(())


def gradients(
    model: nn.Module, objective: Objective | None, weights: Weights, create_graph: bool = False
) -> dict[str, Tensor]:
    """d objective / d weight in at least float32, zero where the objective does not depend on the weight.

    Of several processes the mean, but where a graph is created: what is made of that is for `mean` to average. Raises
    as `evaluate`.
    """
    with _blind_calls(model, weights) as blind:
        value = evaluate(objective, model)
    found = torch.autograd.grad(value, list(weights.values()), create_graph=create_graph, allow_unused=True)
    require_gradients({name for name, slope in zip(weights, found, strict=True) if slope is None and name in blind})
    slopes = [torch.zeros_like(w) if slope is None else slope for w, slope in zip(weights.values(), found, strict=True)]
    wide = {name: slope.to(at_least_float32(slope.dtype)) for name, slope in zip(weights, slopes, strict=True)}
    return wide if create_graph else {name: mean(slope) for name, slope in wide.items()}


@contextmanager
def _blind_calls(model: nn.Module, names: Collection[str]) -> Iterator[set[str]]:
    """The names of those weights whose modules are called, within, in a reentrant checkpoint."""
    blind: set[str] = set()
    owned: defaultdict[str, set[str]] = defaultdict(set)
    for name in names:
        owned[name.rpartition(".")[0]].add(name)

    def notice(own: set[str], *_: Any) -> None:
        if is_in_reentrant_checkpoint():
            blind.update(own)

    with ExitStack() as undo:
        for prefix, module in named_modules(model):
            if prefix in owned:
                undo.callback(module.register_forward_pre_hook(partial(notice, owned[prefix])).remove)
        yield blind


def is_in_reentrant_checkpoint() -> bool:
    """Whether this is called by one of torch's, whose weights gradients come to only in `backward()`."""
    frame = None if torch.is_grad_enabled() else inspect.currentframe()
    while frame is not None and frame.f_code is not CheckpointFunction.forward.__code__:
        frame = frame.f_back
    return frame is not None


def require_gradients(blind: Collection[str]) -> None:
    """Raise ValueError for weights that were used in reentrant checkpoints alone."""
    if blind:
        raise ValueError(
            f"{min(blind)} must be scored by gradients, got it in a checkpoint without use_reentrant=False"
        )


def mean(slope: Tensor) -> Tensor:
    """The mean of a tensor over the processes that score together, without a graph; itself for one alone."""
    group = _processes.get()
    return slope if group is None else average(slope.detach().clone(memory_format=torch.contiguous_format), group)


_processes: ContextVar[ProcessGroup | None] = ContextVar("processes", default=None)


@contextmanager
def _scoring(group: ProcessGroup | None) -> Iterator[None]:
    """Let `mean` be over this group."""
    token = _processes.set(group)
    try:
        yield
    finally:
        _processes.reset(token)


@saliency
def gradient(model: nn.Module, objective: Objective | None, weights: Weights) -> Scores:
    """|g|, g the gradient: the saliency of the entries of S in w = d + S, at S = 0, where SNIP's |g s| vanishes.

    Args:
        model: It stays as it is.
        objective: A function of the model that returns one number, as a loss.
        include: Which tensors, as of `targets`.
        exclude: Which tensors not, as of `targets`.
        basis: weight -> a `Transform`, as `embeddings.DCT`: coefficients are scored in place of the weights.

    Returns:
        A score for every entry of every weight, by qualified name.
    """
    return {name: g.abs() for name, g in gradients(model, objective, weights).items()}
