"""SynFlow (Tanaka et al., "Pruning neural networks without any data by iteratively conserving synaptic flow", 2020)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

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
        with GroupedInDouble():
            slopes = gradients(model, objective, weights)
        return {name: (g * weights[name]).abs() for name, g in slopes.items()}
    finally:
        handle.remove()


def _positive(tensor: Tensor) -> Tensor:
    return tensor.abs().double() if tensor.is_floating_point() else tensor


def _double(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    def cast(value: Any) -> Any:
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    return tuple(map(cast, args)), {name: cast(value) for name, value in kwargs.items()}


class GroupedInDouble(TorchFunctionMode):
    """Inside, the grouped products of mixtures of experts take float64, for which torch has no kernel."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is getattr(torch, "_grouped_mm", None) and args[0].dtype == torch.float64:
            return grouped_product(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def grouped_product(  # in the order of torch's
    a: Tensor, b: Tensor, offs: Tensor | None = None, bias: Tensor | None = None, out_dtype: torch.dtype | None = None
) -> Tensor:
    """What `torch.nn.functional.grouped_mm` computes: a product for each expert, offs the ends of their slices.

    The slices are of a's rows, (m, k) x (experts, k, n) -> (m, n); of b's columns, (experts, m, k) x (k, n) -> (m, n);
    or of what is summed over, (m, k) x (k, n) -> (experts, m, n). Without offs both have an axis of experts.
    """
    if offs is None:
        y = a @ b
    else:
        ends = offs.tolist()
        slices = [slice(first, last) for first, last in zip([0, *ends], ends, strict=False)]
        if a.ndim == 2 and b.ndim == 3:
            y = torch.cat(
                [
                    *(a[part] @ each for part, each in zip(slices, b, strict=True)),
                    a.new_zeros(len(a) - ends[-1], b.shape[2]),
                ]
            )
        elif a.ndim == 3:
            y = torch.cat([each @ b[:, part] for part, each in zip(slices, a, strict=True)], dim=1)
        else:
            y = torch.stack([a[:, part] @ b[part] for part in slices])
    y = y if bias is None else y + bias
    return y if out_dtype is None else y.to(out_dtype)
