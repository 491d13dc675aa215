"""How a Parameter becomes d + U theta: everything is checked first, and then done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from subspace._base.dtypes import at_least_float32
from subspace._base.first_values import remember_values
from subspace._base.sharded import is_sharded
from subspace._base.ties import Tie, other_owners, owned_by, require_tieable, tie, ties
from subspace.embeddings import Embedding
from subspace.offsets import Offset
from subspace.parametrization.handle import Subspace
from subspace.parametrization.module_class import give_own_methods
from subspace.parametrization.parametrization import SubspaceParametrization
from subspace.parametrization.stack import Stack, set_apart, stack_of
from subspace.products.geometry import memory_format


class Registration(NamedTuple):
    """A subspace that `prepare` has found to fit a module's Parameter."""

    module: nn.Module
    name: str
    parametrization: SubspaceParametrization
    weight: nn.Parameter
    tied: Sequence[Tie] = ()  # other owners of the Parameter

    @property
    def dtype(self) -> torch.dtype:
        """Of theta, by default."""
        return at_least_float32(self.weight.dtype)

    def commit(self, theta: Tensor | None = None, dtype: torch.dtype | None = None) -> Subspace:
        """Register it; raises ValueError for a theta of another shape, the module then as it was."""
        module, name, parametrization, weight, tied = self
        with torch.no_grad():
            if theta is None:
                fresh = weight.new_empty(parametrization.dim)
                theta = fresh if weight.is_meta else parametrization.nearest(weight)
            start = theta.detach().to(weight.device, dtype or self.dtype)
        if start.shape != (parametrization.dim,):
            raise ValueError(f"theta must have shape ({parametrization.dim},), got {tuple(start.shape)}")
        if start.is_meta and not theta.is_meta:
            parametrization.start = theta.detach().to("cpu", start.dtype, copy=True)
        remember_values(module)
        for other in tied:
            tie(*other, module, name)
        weight.grad = None  # of the old shape
        parametrization.first = start.clone(memory_format=torch.contiguous_format)
        _set_data(weight, parametrization.first)
        parametrize.register_parametrization(module, name, parametrization, unsafe=True)
        parametrization.first = None
        weight.requires_grad_(True)
        if getattr(module, "sparse", False):  # of an embedding table
            module.sparse = False  # type: ignore[assignment]
        give_own_methods(type(module))
        stack = stack_of(module, name)
        stack.__class__ = Stack
        if not parametrization.dim:
            del stack.original
            stack.register_buffer("original", start)
        if start.dtype != parametrization.like.dtype:
            set_apart(stack)
        return Subspace(module, name, parametrization)


def _set_data(parameter: nn.Parameter, values: Tensor) -> None:
    """Give a Parameter other values, of any shape and dtype; it stays the same object."""
    if is_traceable_wrapper_subclass(parameter):
        torch.utils.swap_tensors(parameter, nn.Parameter(values, parameter.requires_grad))
    else:
        parameter.data = values


def prepare(
    module: nn.Module, name: str, offset: Offset, embedding: Embedding, model: nn.Module | None = None
) -> Registration:
    """Check everything that `register` checks of a module, raising what it raises; touches nothing."""
    parametrization = SubspaceParametrization(offset, embedding)
    if parametrize.is_parametrized(module, name):
        raise ValueError(
            f"{name} must not be parametrized yet, got one that is: register the subspace first, or on the tensor that "
            f"module.parametrizations.{name} starts from"
        )
    if ties(module):
        raise ValueError(f"{name} must not be of a module with a tied tensor, got one with {next(iter(ties(module)))}")
    weight = module._parameters.get(name)
    if weight is None:
        known = sorted(each for each, parameter in module._parameters.items() if parameter is not None)
        computed = isinstance(getattr(module, name, None), Tensor)
        got = f"{name!r}, a buffer or what a hook computes (weight_norm, prune)" if computed else repr(name)
        raise ValueError(f"name must be one of {known}, got {got}")
    _require_usable(name, weight)
    tied = _tied(module, name, weight, model)
    if weight.shape != offset.shape:
        raise ValueError(
            f"offset and embedding must have {name}'s shape {tuple(weight.shape)}, got {tuple(offset.shape)}"
        )
    for part in (offset, embedding):
        if (part.like.dtype, part.like.device) != (at_least_float32(weight.dtype), weight.device):
            raise ValueError(
                f"{type(part).__name__} must be of {name}'s {weight.dtype} on {weight.device}, "
                f"got {part.like.dtype} on {part.like.device}"
            )
    parametrization.like = torch.empty(0, dtype=weight.dtype, device=weight.device)
    parametrization.is_channels_last = memory_format(weight) != torch.contiguous_format
    return Registration(module, name, parametrization, weight, tied)


def _require_usable(name: str, weight: nn.Parameter) -> None:
    if weight._backward_hooks:
        raise ValueError(
            f"{name} must have no gradient hook, which would be given theta's gradient, got one: remove it"
        )
    if nn.parameter.is_lazy(weight):
        raise ValueError(f"{name} must have a shape, got one that is not initialized: run a forward pass first")
    if not weight.is_floating_point():
        raise TypeError(f"{name} must be a real floating-point tensor, got {weight.dtype}")
    if is_sharded(weight):
        raise ValueError(f"{name} must be whole to be registered, got a DTensor: register before the model is sharded")


def _tied(module: nn.Module, name: str, weight: nn.Parameter, model: nn.Module | None) -> list[Tie]:
    """The other owners of a Parameter, which are to read the weight of this one; ValueError for those that cannot."""
    if model is None:
        if other := next(other_owners(module, name), None):
            got = f"{other[1]} of {type(other[0]).__name__}"
            raise ValueError(f"{name} must not be tied without model=, the model of both, got one that is also {got}")
        return []
    tied = [place for place in owned_by(model, weight) if place != (module, name)]
    for other in tied:
        require_tieable(*other)
    return tied


def register(
    module: nn.Module,
    name: str,
    offset: Offset,
    embedding: Embedding,
    theta: Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
    model: nn.Module | None = None,
) -> Subspace:
    """Make a module's Parameter equal to d + U theta, with theta trained in its place.

    The Parameter object stays the same one, re-shaped to (dim,), without its gradient and requiring one. On
    the meta device, where nothing has values, it keeps those of a real `theta` for `initialize`. An embedding table's
    `sparse` is turned off, as the gradient to theta is dense.

    Args:
        module: Any module, of any class.
        name: Of one of its own Parameters, as "weight".
        offset: d, made for this Parameter.
        embedding: U, made for this Parameter.
        theta: Where training starts: (dim,). By default U^+ (w - d), the point of the subspace nearest to the present
            weight.
        dtype: Of theta: by default float32, or float64 for a weight of that. A later `model.to(dtype)` casts theta too.
        model: Where the Parameter may be tied to others, as an embedding table to a head: they then read the same w.

    Returns:
        A handle on the registered tensor.

    Raises:
        ValueError: If the module has no such Parameter, or it is parametrized already, or its shape or device is not
            that of `offset` and `embedding`, or one of them is of float64 and another not, or theta has another shape,
            or it is tied and there is no `model`. The module is then as it was.
        TypeError: If the Parameter is not real floating-point.

    >>> from subspace import Key
    >>> from subspace.offsets import DCT
    >>> from subspace.embeddings import Sparse
    >>> layer = nn.Linear(100, 100)
    >>> space = register(layer, "weight", DCT(layer.weight), Sparse(layer.weight, 10, key=Key(0)))
    >>> space.theta.shape, layer.weight.shape
    (torch.Size([10]), torch.Size([100, 100]))
    """
    return prepare(module, name, offset, embedding, model).commit(theta, dtype)
