"""Saliency: a score for every entry of every chosen weight, from a model and an objective; the highest are kept.

An objective is any function of the model that returns one number: it holds the data and the loss, so that they can be
anything. Scoring leaves the model as it was, to the bit: weights, buffers, gradients, modes, and torch's random state.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from subspace.fixed import wide
from subspace.targets import Selection, targets

Objective = Callable[[nn.Module], Tensor]  # e.g. lambda net: cross_entropy(net(x), y)
Scores = dict[str, Tensor]  # by qualified name, shaped like the weight
Saliency = Callable[[nn.Module, Any], Scores]  # (model, objective), which some do not need
Weights = Mapping[str, nn.Parameter]


class Chosen(Protocol):
    """A saliency of the weights that `targets` chooses."""

    def __call__(
        self,
        model: nn.Module,
        objective: Objective | None = None,
        *,
        include: Selection | None = None,
        exclude: Selection | None = None,
    ) -> Scores: ...


def saliency(score: Callable[[nn.Module, Objective | None, Weights], Scores]) -> Chosen:
    """The saliency that is score(model, objective, weights): weights require gradients, whatever it does is undone."""

    @functools.wraps(score)
    def scored(
        model: nn.Module,
        objective: Objective | None = None,
        *,
        include: Selection | None = None,
        exclude: Selection | None = None,
    ) -> Scores:
        weights = {q: w for q, (_, _, w) in targets(model, include, exclude).items()}
        valued(weights)
        with preserved(model), torch.enable_grad():
            for weight in weights.values():
                weight.requires_grad_(True)
            return {q: s.detach() for q, s in score(model, objective, weights).items()}

    del scored.__wrapped__  # its signature is another
    return scored


def valued(weights: Mapping[str, Tensor]) -> None:
    """Raise ValueError naming a weight on the meta device, where none has values."""
    if empty := [q for q, weight in weights.items() if weight.is_meta]:
        raise ValueError(f"{empty[0]} must have values for what is asked, got a weight on the meta device")


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

    Raises as `evaluate`.
    """
    value = evaluate(objective, model)
    slopes = torch.autograd.grad(value, list(weights.values()), create_graph=create_graph, materialize_grads=True)
    return {q: slope.to(wide(slope.dtype)) for q, slope in zip(weights, slopes, strict=True)}


@saliency
def gradient(model: nn.Module, objective: Objective | None, weights: Weights) -> Scores:
    """|g|, g the gradient: the saliency of the entries of S in w = d + S, at S = 0, where SNIP's |g s| vanishes."""
    return {q: g.abs() for q, g in gradients(model, objective, weights).items()}


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Undo, at the end, any change of data, gradients, requires_grad, buffers, modes and torch's random state.

    A compiled model runs eagerly meanwhile: it would be compiled again for gradients it never needs otherwise.
    """
    modes = [(module, module.training) for module in model.modules()]
    parameters = [(p, p.data, p.grad, p.requires_grad) for p in model.parameters()]
    buffers = [(m._buffers, n, b, b.clone()) for m in model.modules() for n, b in m._buffers.items() if b is not None]
    devices = {p.device for p, *_ in parameters if p.device.type not in ("cpu", "meta")}
    kind = next((device.type for device in devices), "cuda")
    eager = torch.compiler.set_stance("force_eager")
    with torch.random.fork_rng([device.index for device in devices], device_type=kind), eager:
        for p, *_ in parameters:
            p.grad = None
        try:
            yield
        finally:
            for p, data, grad, requires_grad in parameters:
                p.data, p.grad = data, grad
                p.requires_grad_(requires_grad)
            for owner, name, buffer, content in buffers:
                with torch.no_grad():
                    owner[name] = buffer.copy_(content)
            for module, training in modes:
                module.training = training


@contextmanager
def replaced(weights: Weights, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Let the weights named in `values` have these values meanwhile."""
    before = {q: weights[q].data for q in values}
    try:
        for q, value in values.items():
            weights[q].data = value.detach()
        yield
    finally:
        for q, data in before.items():
            weights[q].data = data
