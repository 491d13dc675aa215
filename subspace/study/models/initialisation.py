"""Initialisation: the same bits on every machine, from a key, each tensor under its qualified name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from subspace import Key
from subspace.offsets import Gaussian

Model = TypeVar("Model", bound=nn.Module)
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)


def initialise(make: Callable[[], Model], key: Key, gain: Callable[[str, Tensor], float] | None = None) -> Model:
    """The model, its linear and convolution weights normal with variance gain^2 / fan-in; biases 0, norms 1 and 0.

    gain: of a weight and its qualified name; by default the square root of 2 (Kaiming: He et al. 2015). A module with
    other Parameters has a method draw(key) that sets them. The model is built without values first, since
    torch's own initialisation would move the global generator; under torch.device("meta") it stays without.
    """
    wanted = torch.empty(0).device
    with torch.device("meta"):
        model = make()
    if wanted.type == "meta":
        return model
    model.to_empty(device=wanted)
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, LAYERS):
                weight, scale = module.weight, None if gain is None else gain(name, module.weight)
                weight.zero_() if scale == 0 else weight.copy_(normal(weight, key.fold(f"{name}.weight"), scale))
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, NORMS):
                module.reset_parameters()
            elif draw := getattr(module, "draw", None):
                draw(key.fold(name))
    return model


def normal(weight: Tensor, key: Key, gain: float | None) -> Tensor:
    """Numbers for a weight, of variance gain^2 / fan-in, drawn from the key; gain^2 is 2 unless it is given."""
    return Gaussian(weight, key=key, gain=gain)()


def uniform(tensor: Tensor, weight: Tensor, key: Key) -> Tensor:
    """Numbers for a weight or a bias as torch draws them by default: uniform within (fan-in of the weight)^-1/2."""
    numbers = torch.from_numpy(key.uniform(tensor.numel())).to(tensor).reshape(tensor.shape)
    drawn: Tensor = (2 * numbers - 1) / weight[0].numel() ** 0.5
    return drawn


@torch.no_grad()
def draw_biases(model: nn.Module, key: Key) -> None:
    """Start the biases of linear layers and convolutions at torch's default, in place of 0."""
    for name, module in model.named_modules():
        if isinstance(module, LAYERS) and module.bias is not None and not module.bias.is_meta:
            module.bias.copy_(uniform(module.bias, module.weight, key.fold(f"{name}.bias")))
