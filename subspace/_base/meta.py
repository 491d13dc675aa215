"""Models on torch's meta device, whose tensors have shapes and no values, and the real tensors in their place."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from subspace._base.qualified import named_buffers, named_parameters

Replacements = dict[Tensor, Tensor]  # by identity: for a Parameter or buffer, the one in its place


def direct_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The Parameters and buffers of a module, without those of its children, by name."""
    for store in (module._parameters, module._buffers):
        yield from ((name, tensor) for name, tensor in store.items() if tensor is not None)


def empty_like(tensor: Tensor) -> Tensor:
    """A tensor like it on the CPU, without values; a Parameter for a Parameter."""
    return as_parameter_like(torch.empty_like(tensor, device="cpu", requires_grad=False), tensor)


def as_parameter_like(values: Tensor, tensor: Tensor) -> Tensor:
    """The values as a Parameter, if the tensor is one, that requires a gradient if it does."""
    return nn.Parameter(values, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else values


def replace_tensors(model: nn.Module, fresh: Mapping[Tensor, Tensor]) -> None:
    """Put for every tensor its new one in its place, everywhere it is."""
    for module in model.modules():
        for name, tensor in list(direct_tensors(module)):
            if tensor in fresh:
                store: dict[str, Any] = module._parameters if name in module._parameters else module._buffers
                store[name] = fresh[tensor]


@contextmanager
def replaced_tensors(model: nn.Module, fresh: Replacements) -> Iterator[None]:
    """Put new tensors in their places; for good, unless the block fails."""
    replace_tensors(model, fresh)
    try:
        yield
    except BaseException:
        replace_tensors(model, {new: old for old, new in fresh.items()})
        raise


@contextmanager
def materialized_from_meta(
    model: nn.Module, registered: Container[str], frozen: Container[str], is_filled: Callable[[str], bool]
) -> Iterator[None]:
    """Put real tensors on the CPU in place of those on meta, for a checkpoint to fill; undone if the block fails.

    registered: names of weights; each gets a single number, expanded, until it becomes theta. frozen: what no
    checkpoint holds, as it holds no buffer that is not persistent; raises ValueError if such a tensor is on meta.
    is_filled: whether a tensor of this name is the checkpoint's to fill; any other stays where it is.
    """
    fresh: Replacements = {}
    names = {id(tensor): name for name, tensor in (*named_parameters(model), *named_buffers(model))}
    for long, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            name = names.get(id(tensor))
            if not is_filled(name or long):
                continue
            if name is None or name in frozen:
                raise ValueError(
                    f"{name or long} must have values, which no checkpoint holds, got a tensor on the meta device"
                )
            number = torch.zeros((), dtype=tensor.dtype, device="cpu").expand(tensor.shape)
            fresh[tensor] = as_parameter_like(number, tensor) if name in registered else empty_like(tensor)
    with replaced_tensors(model, fresh):
        yield
