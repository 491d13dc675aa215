"""SynFlow (Tanaka et al., "Pruning neural networks without any data by iteratively conserving synaptic flow", 2020)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from subspace._base.preserve import preserved
from subspace._base.selection import Selection
from subspace.methods.coefficients import Bases, BasisRule
from subspace.methods.processes import Group
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


def synflow(
    model: nn.Module,
    objective: Objective | None = None,
    *,
    include: Selection | None = None,
    exclude: Selection | None = None,
    basis: BasisRule | Bases | None = None,
    group: Group = "auto",
) -> Scores:
    """g * |w|, g the gradient at |w| of an objective such as `flow(1, 3, 32, 32)`: no data, made for 100 rounds.

    In float64 whatever the dtype (deep networks overflow float32), inputs included, and in eval mode. As in the code of
    the paper, the whole state becomes its absolute value: biases, norms and running statistics too. In a network
    without biases (or shifts of norms) the scores of every layer add up to the same number, R. In a basis, w = B c, the
    score is |c| times the derivative of R(|w|) with respect to c.

    Args:
        model: It stays as it is.
        objective: A function of the model that returns one number, as a loss.
        include: Which tensors, as of `targets`.
        exclude: Which tensors not, as of `targets`.
        basis: weight -> a `Transform`, as `embeddings.DCT`: coefficients are scored in place of the weights.
        group: The processes that score one model, as of a `Mover`.

    Returns:
        A score for every entry of every weight, by qualified name.
    """
    with preserved(model):
        model.eval()
        _replace(model, _double)
        handle = model.register_forward_pre_hook(_double_inputs, with_kwargs=True)
        try:
            with GroupedInDouble():
                return _positive_flow(model, objective, include=include, exclude=exclude, basis=basis, group=group)
        finally:
            handle.remove()


@saliency
def _positive_flow(model: nn.Module, objective: Objective | None, weights: Weights) -> Scores:
    _replace(model, lambda tensor: tensor.abs() if tensor.is_floating_point() else tensor)
    return {name: (g * weights[name]).abs() for name, g in gradients(model, objective, weights).items()}


def _replace(model: nn.Module, value: Callable[[Tensor], Tensor]) -> None:
    """Give every Parameter and buffer the value of its own; differentiably, where it was computed."""
    for module in model.modules():
        stores: tuple[dict[str, Any], ...] = module._parameters, module._buffers
        for store in stores:
            for name, tensor in store.items():
                if isinstance(tensor, nn.Parameter):
                    tensor.data = value(tensor.data)
                elif tensor is not None:
                    store[name] = value(tensor)


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _double_inputs(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(map(_double, args)), {name: _double(value) for name, value in kwargs.items()}


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
