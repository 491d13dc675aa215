"""How a tensor that is d + U theta becomes a plain Parameter again, or d for a while."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import nn
from torch.nn.utils import parametrize

from subspace._base.first_values import forget_values
from subspace._base.qualified import unwrapped
from subspace._base.sharded import sharded_modules
from subspace._base.ties import restore_ties
from subspace.parametrization.handle import Subspace, require_thetas, subspaces
from subspace.parametrization.stack import stack_of
from subspace.products.geometry import last_format


def materialize(model: nn.Module) -> nn.Module:
    """A copy of a model with plain dense Parameters in place of its subspaces.

    Args:
        model: With any number of subspaces; it stays as it is.

    Returns:
        The copy, of what torch's wrappers have inside, such as those of torch.compile or DistributedDataParallel. A
        Parameter of it requires a gradient if its theta did, or, of a theta without numbers, any other's; other
        parametrizations on top of a subspace stay.

    Raises:
        ValueError: As `unregister`.
    """
    model = unwrapped(model)
    require_whole(model)
    return unregister(copy.deepcopy(model))


def unregister(model: nn.Module) -> nn.Module:
    """Put plain dense Parameters in place of the subspaces of a model, in place, one after the other.

    A pretrained d is not written into: it may be another model's too.

    Args:
        model: With any number of subspaces.

    Returns:
        The model. A Parameter of it requires a gradient if its theta did, or, of a theta without numbers, any other's.
        Other parametrizations on top of a subspace stay. Make a new optimizer.

    Raises:
        ValueError: For a model that `fully_shard` has sharded: it holds no whole theta.
    """
    require_whole(model)
    spaces = [space for _, space in subspaces(model)]
    any_trains = any(space.theta.requires_grad for space in spaces)
    for space in spaces:
        trains = space.theta.requires_grad if len(space.theta) else any_trains
        stack = stack_of(space.module, space.name)
        with torch.no_grad():
            weight = nn.Parameter(space.parametrization(space.theta), trains)
        last = space.parametrization.is_channels_last
        weight.data = weight.clone(memory_format=last_format(weight) if last else torch.contiguous_format)
        stack.__class__ = parametrize.ParametrizationList
        stack.original, stack.is_tensor = weight, True  # in place of theta, which may be shared
        if len(stack) == 1:
            parametrize.remove_parametrizations(space.module, space.name, leave_parametrized=False)
        else:
            del stack[0]
    restore_ties(model)
    forget_values(model)
    return model


def require_whole(model: nn.Module, what: str = "to become dense") -> None:
    """Raise ValueError for a model that FSDP has sharded."""
    if next(sharded_modules(model), None) is not None:
        raise ValueError(f"model must be whole {what}, got one sharded by fully_shard")
    require_thetas(model)


@contextmanager
def at_offset(spaces: Sequence[Subspace]) -> Iterator[None]:
    """Let every w be its d inside the block: another theta, of zeros, is in the place of its own."""
    stacks = [stack_of(space.module, space.name) for space in spaces if space.parametrization.dim]
    thetas = [stack.original for stack in stacks]
    try:
        for stack, theta in zip(stacks, thetas, strict=True):
            stack.original = nn.Parameter(torch.zeros_like(theta), requires_grad=False)
        yield
    finally:
        for stack, theta in zip(stacks, thetas, strict=True):
            stack.original = theta


@contextmanager
def taken_off(spaces: Iterable[Subspace]) -> Iterator[None]:
    """Let tensors be plain Parameters that hold d, for good unless the block fails: then they are as they were.

    Raises ValueError for a tensor that is parametrized again.
    """
    taken: list[Callable[[], None]] = []
    try:
        for space in spaces:
            taken.append(_take_off(space))
        yield
    except BaseException:
        for put_back in reversed(taken):
            put_back()
        raise


def _take_off(space: Subspace) -> Callable[[], None]:
    """Take one off; returns what puts it back."""
    module, name, kind, stack = space.module, space.name, type(space.module), stack_of(space.module, space.name)
    stacks = cast(nn.ModuleDict, module.parametrizations)
    order = dict(stacks._modules)
    if len(stack) > 1:
        raise ValueError(f"{name} must not be parametrized again to be replaced, got one that is")
    with torch.no_grad():
        weight = nn.Parameter(space.offset(), space.theta.requires_grad)
    del stacks[name]
    if stacks:
        delattr(kind, name)
    else:
        module.__class__ = kind.__bases__[0]
        del module.parametrizations
    module.register_parameter(name, weight)

    def put_back() -> None:
        del module._parameters[name]
        module.__class__, stacks._modules = kind, order
        module.parametrizations = stacks
        if not hasattr(kind, name):
            parametrize._inject_property(module, name)

    return put_back
