"""Tensors of which each process holds a part: DTensors, as `fully_shard` and tensor parallelism make of Parameters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def is_sharded(tensor: Tensor | None) -> bool:
    """Whether it is a DTensor."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """The tensor, of which each process may have a part; then they all have to ask."""
    shared: Any = tensor
    found: Tensor = shared.full_tensor() if is_sharded(tensor) else tensor
    return found


@torch.no_grad()
def fill(tensor: Tensor, where: Tensor, value: float = 0.0) -> None:
    """Set the numbers to a value where the whole, plain `where` is True; of a sharded tensor each process in its part.

    Where `where` is the same in all processes nothing travels.
    """
    shared: Any = tensor
    if is_sharded(tensor):
        from torch.distributed.tensor import distribute_tensor

        where = distribute_tensor(where, shared.device_mesh, shared.placements, src_data_rank=None).to_local()
        shared = shared.to_local()
    shared.masked_fill_(where, value)


@torch.no_grad()
def write(tensor: Tensor, index: Tensor, values: Tensor) -> None:
    """tensor[index] = values; of a sharded tensor each process does so in its part, and all have to."""
    if not is_sharded(tensor):
        tensor[index] = values
        return
    from torch.distributed.tensor import distribute_tensor

    shared: Any = tensor
    now = whole(tensor.detach()).index_put((index,), values)
    shared.copy_(distribute_tensor(now, shared.device_mesh, shared.placements, src_data_rank=None))


def linear_in_parts(x: Tensor, weight: Tensor) -> Tensor:
    """x weight^T for a fixed sharded weight, gathered for it and again for the backward pass: no pass keeps it."""
    y: Tensor = _Linear.apply(x, weight)  # type: ignore[no-untyped-call]
    return y


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.weight, ctx.dtype = weight, x.dtype
        return F.linear(x, whole(weight).to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None]:
        return (gradients[0] @ whole(ctx.weight).to(ctx.dtype)) if ctx.needs_input_grad[0] else None, None


def sharded_modules(model: nn.Module) -> Iterator[Any]:
    """Those that `fully_shard` was called with."""
    for module in model.modules():
        if any(kind.__name__ == "FSDPModule" for kind in type(module).__mro__):
            yield module


def is_in_parts(model: nn.Module) -> bool:
    """Whether several processes hold the model together."""
    return next(sharded_modules(model), None) is not None or any(map(is_sharded, model.parameters()))


def reshard(model: nn.Module) -> None:
    """Let the Parameters be those that the optimizer has: `fully_shard` puts others in their place to run the model."""
    for module in sharded_modules(model):
        module.reshard()
