"""Models on torch's meta device, whose tensors have shapes and no values, and the real tensors in their place."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Fresh = dict[Tensor, Tensor]  # by identity: for a Parameter or buffer, the one in its place


def own(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The module's own Parameters and buffers, by name."""
    for store in (module._parameters, module._buffers):
        yield from ((name, tensor) for name, tensor in store.items() if tensor is not None)


def blank(tensor: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """One like it on that device, without values; a Parameter for a Parameter."""
    empty = torch.empty_like(tensor, device=device, requires_grad=False)
    return like_it(empty, tensor)


def like_it(values: Tensor, tensor: Tensor) -> Tensor:
    """The values as a Parameter, if the tensor is one, that requires a gradient if it does."""
    return nn.Parameter(values, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else values


def exchange(model: nn.Module, fresh: Mapping[Tensor, Tensor]) -> None:
    """Put every tensor's new one in its place, everywhere it is."""
    for module in model.modules():
        for name, tensor in list(own(module)):
            if tensor in fresh:
                store: dict[str, Any] = module._parameters if name in module._parameters else module._buffers
                store[name] = fresh[tensor]


@contextmanager
def off_meta(model: nn.Module, registered: Container[str], frozen: Container[str]) -> Iterator[None]:
    """Real tensors on the CPU in place of those on meta, for good if nothing fails meanwhile, for a checkpoint to fill.

    registered: what will be theta, until then a weight that is one number, expanded. frozen: what no checkpoint holds,
    as it holds no buffer that is not persistent; raises ValueError if such a tensor is on meta.
    """
    fresh: Fresh = {}
    persistent = model.state_dict().keys()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            if name in frozen or name not in persistent:
                raise ValueError(f"{name} must have values, which no checkpoint holds, got a tensor on the meta device")
            number = torch.zeros((), dtype=tensor.dtype, device="cpu")
            fresh[tensor] = like_it(number.expand(tensor.shape), tensor) if name in registered else blank(tensor)
    exchange(model, fresh)
    try:
        yield
    except BaseException:
        exchange(model, {new: old for old, new in fresh.items()})
        raise
