"""SynFlow (Tanaka et al., "Pruning neural networks without any data by iteratively conserving synaptic flow", 2020)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from subspace.methods.saliencies.base import Objective, Scores, Weights, gradients, saliency


def flow(*shape: int) -> Objective:
    """Make the objective of SynFlow, R: the sum of the outputs for an input of ones.

    For a network that takes something else than one real tensor, write it out, as lambda net: net(tokens).sum().

    Args:
        shape: Of the input, batch axis first.

    Returns:
        The objective: model -> R, of shape ().
    """

    def total(net: nn.Module) -> Tensor:
        like = next(net.parameters())
        output: Tensor = net(torch.ones(shape, dtype=like.dtype, device=like.device))
        return output.sum()

    return total


@saliency
def synflow(model: nn.Module, objective: Objective | None, weights: Weights) -> Scores:
    """g * |w|, g the gradient at |w| of an objective such as `flow(1, 3, 32, 32)`: no data, made for 100 rounds.

    In float64 whatever the dtype (deep networks overflow float32), inputs included, and in eval mode. As in the code of
    the paper, the whole state becomes its absolute value: biases, norms and running statistics too. In a network
    without biases (or shifts of norms) the scores of every layer add up to the same number, R.

    Args:
        model: It stays as it is.
        objective: A function of the model that returns one number, as a loss.
        include: Which tensors, as of `targets`.
        exclude: Which tensors not, as of `targets`.

    Returns:
        A score for every entry of every weight, by qualified name.
    """
    model.eval()
    for parameter in model.parameters():
        parameter.data = _positive(parameter.data)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else _positive(buffer)
    handle = model.register_forward_pre_hook(_double, with_kwargs=True)
    try:
        return {name: (g * weights[name]).abs() for name, g in gradients(model, objective, weights).items()}
    finally:
        handle.remove()


def _positive(tensor: Tensor) -> Tensor:
    return tensor.abs().double() if tensor.is_floating_point() else tensor


def _double(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    def cast(value: Any) -> Any:
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    return tuple(map(cast, args)), {name: cast(value) for name, value in kwargs.items()}
