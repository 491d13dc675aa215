"""Qualified names, as "layer1.0.weight"."""

from __future__ import annotations

from torch import nn


def owner_of(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Find the module that has a tensor.

    Args:
        model: Any module.
        name: The tensor's qualified name, as "layer1.0.weight".

    Returns:
        The module, and the tensor's name there.

    Raises:
        AttributeError: If the model has no such module.

    >>> owner_of(nn.Sequential(nn.Linear(2, 3)), "0.weight")
    (Linear(in_features=2, out_features=3, bias=True), 'weight')
    """
    prefix, _, last = name.rpartition(".")
    return model.get_submodule(prefix), last
