"""Models whose linear layers bitsandbytes has quantised, made ready to be tuned."""

from __future__ import annotations

import torch
from torch import nn

from subspace._base.bitsandbytes_weights import LIBRARY, BytesWeight, is_of_bitsandbytes, weight_of


def from_bitsandbytes(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """Turn the quantised linear layers of bitsandbytes into nn.Linear with the same bytes for weights, in place.

    A Linear4bit or Linear8bitLt computes with attributes of its weight, which a registered weight cannot have. The
    nn.Linear that it becomes holds the same memory as a tensor that knows its shape and dtype, and multiplies by the
    library's own product; recipes, `register`, `Deltas` and `structured` take it as they take torchao's. Names and
    hooks stay.

    Args:
        model: With at least one such layer, on the device where it is to be tuned: that is where bitsandbytes
            quantises.
        dtype: Of the weights' values, and from now on of the biases: by default that of the model's first other
            floating-point Parameter, or without one that of the weights before they were quantised. The product of a
            Linear4bit computes in a dtype of its own, as before.

    Returns:
        The model, or the layer if it is one.

    Raises:
        ValueError: If there is no such layer, one whose forward somebody has replaced, or another kind of module of
            that library's with a quantised weight. The model is then as it was.
    """
    layers = [(name, module) for name, module in model.named_modules() if is_of_bitsandbytes(_weight(module))]
    if not layers:
        raise ValueError(f"model must have a linear layer that {LIBRARY} has quantised, got none")
    for name, module in layers:
        kind = type(module)
        if not (isinstance(module, nn.Linear) and kind.__module__.split(".")[0] == LIBRARY):
            raise ValueError(f"{name} must be a Linear4bit or Linear8bitLt, got {kind.__name__}")
        if "forward" in vars(module):
            raise ValueError(f"{name} must have the forward of its class, got one that was replaced")
    dtype = dtype or _dtype_beside(model, [module for _, module in layers])
    weights: list[BytesWeight] = [weight_of(module, dtype) for _, module in layers]
    for (_, module), weight in zip(layers, weights, strict=True):
        module.__class__ = nn.Linear
        for name in ("quant_state", "state"):  # which the tensor holds now
            vars(module).pop(name, None)
        module.weight = nn.Parameter(weight, requires_grad=False)
        if isinstance(module.bias, nn.Parameter):
            module.bias.data = module.bias.data.to(weight.dtype)
    return model


def _weight(module: nn.Module) -> nn.Parameter | None:
    return module._parameters.get("weight")


def _dtype_beside(model: nn.Module, layers: list[nn.Module]) -> torch.dtype | None:
    """Of the first floating-point Parameter that is of no quantised layer."""
    own = {id(p) for layer in layers for p in layer.parameters(recurse=False)}
    return next((p.dtype for p in model.parameters() if p.is_floating_point() and id(p) not in own), None)
