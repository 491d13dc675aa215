"""Qualified names, as "layer1.0.weight": those of the plain model, whatever torch's wrappers have put around its parts.

A compiled model, one of several processes, one whose activations are checkpointed, one that is sharded and an average
have a module inside that has the names; the wrapper's own part of a name, as "_orig_mod", is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from torch import Tensor, nn

INSIDE = {
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "ActivationWrapper": "_checkpoint_wrapped_module",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "AveragedModel": "module",
}


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside torch's wrappers; itself where there is none."""
    for kind in type(module).__mro__:
        if kind.__name__ in INSIDE and kind.__module__.startswith("torch."):
            return unwrapped(module._modules[INSIDE[kind.__name__]])  # type: ignore[arg-type]
    return module


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a model without wrappers, each once, by the names that they have in the plain model."""
    yield from _named(model, "", set())


def _named(module: nn.Module, name: str, seen: set[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    module = unwrapped(module)
    if module in seen:
        return
    seen.add(module)
    yield name, module
    for child_name, child in module._modules.items():
        if child is not None:
            yield from _named(child, f"{name}.{child_name}".lstrip("."), seen)


def named_parameters(model: nn.Module, ties: bool = False) -> Iterator[tuple[str, nn.Parameter]]:
    """The Parameters of a model by the names that they have in the plain model: each once, or with ties under each."""
    for name, tensor in _tensors(model, "_parameters", ties):
        yield name, cast(nn.Parameter, tensor)


def named_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The buffers of a model that are in its state_dict, each once, by the names that they have in the plain model."""
    yield from _tensors(model, "_buffers")


def _tensors(model: nn.Module, kind: str, ties: bool = False) -> Iterator[tuple[str, Tensor]]:
    seen = set()
    for prefix, module in named_modules(model):
        for name, tensor in getattr(module, kind).items():
            if (
                tensor is not None
                and (ties or id(tensor) not in seen)
                and name not in module._non_persistent_buffers_set
            ):
                seen.add(id(tensor))
                yield f"{prefix}.{name}".lstrip("."), tensor


def owner_of(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Find the module that has a tensor.

    Args:
        model: Any module; those inside torch's wrappers, as of a compiled model, have their names in the plain one.
        name: The tensor's qualified name, as "layer1.0.weight".

    Returns:
        The module, and the tensor's name there.

    Raises:
        AttributeError: If the model has no such module.

    >>> owner_of(nn.Sequential(nn.Linear(2, 3)), "0.weight")
    (Linear(in_features=2, out_features=3, bias=True), 'weight')
    """
    *path, last = name.split(".")
    module = unwrapped(model)
    for part in path:
        module = unwrapped(module.get_submodule(part))
    return module, last
