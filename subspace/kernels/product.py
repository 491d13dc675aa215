"""A product with w = scale T + S as an operator: w never saved for the backward pass, every mode of torch served.

Eagerly it is an autograd.Function that calls the implementation directly, for the least overhead; in a compiled graph,
on fake and meta tensors and on subclasses an operator `subspace::name` with its backward. Inside torch.func's
transforms, in forward-mode differentiation and where gradients are differentiated again it is the plain reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from subspace.kernels.sparse import check_once

Needs = tuple[bool, bool, bool]
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


class Product:
    """(x, scale, values, index, *constants) -> w x, registered as `subspace::name`.

    forward computes it; backward(gy, x, scale, values, index, needs, *constants) the gradients to x, scale and values,
    of which `needs` says which are wanted; like(x, *constants) is the output of a fake x; reference is differentiable.
    constants: their schema, as "int[] shape, str route"; w's shape is the first; the route is the last, and
    resolve(x, values, *constants) the one taken.
    """

    def __init__(
        self,
        name: str,
        constants: str,
        forward: Callable[..., Tensor],
        backward: Callable[..., Gradients],
        like: Callable[..., Tensor],
        reference: Callable[..., Tensor],
        resolve: Callable[..., str],
    ) -> None:
        self._forward, self._backward, self.reference, self._resolve = forward, backward, reference, resolve
        inputs = f"Tensor x, Tensor? scale, Tensor values, Tensor index, {constants}"
        self.operator = torch.library.custom_op(
            f"subspace::{name}", self._operator_forward, mutates_args=(), schema=f"({inputs}) -> Tensor"
        )
        self.operator.register_fake(lambda x, scale, values, index, *constants: like(x, *constants))
        self.operator.register_autograd(self._operator_backward, setup_context=self._setup_context)
        inputs = inputs.replace("Tensor index", "Tensor index, bool[] needs")
        self.backward_operator = torch.library.custom_op(
            f"subspace::{name}_backward",
            self._all_gradients,
            mutates_args=(),
            schema=f"(Tensor gy, {inputs}) -> (Tensor, Tensor, Tensor)",
        )
        self.backward_operator.register_fake(self._like_gradients)

    def __call__(self, x: Tensor, scale: Tensor | None, values: Tensor, index: Tensor, *constants: Any) -> Tensor:
        if _autocast(x) and x.dtype != torch.float64:
            x = x.to(torch.get_autocast_dtype(x.device.type))
        if torch.compiler.is_compiling() or type(x) not in (Tensor, nn.Parameter) or x.is_meta:
            y: Tensor = self.operator(x, scale, values, index, *constants)
            return y
        if torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0:
            y = self._without_autocast(self.reference, x, scale, values, index, *constants)
            return y
        y = _Apply.apply(x, scale, values, index, self, constants)  # type: ignore[no-untyped-call]
        return y

    def resolved(self, x: Tensor, values: Tensor, constants: Sequence[Any]) -> tuple[Any, ...]:
        """The constants, with the route that is taken in place of "auto"."""
        constants = _hashable(constants)
        return *constants[:-1], self._resolve(x, values, *constants)

    def forward(self, x: Tensor, scale: Tensor | None, values: Tensor, index: Tensor, *constants: Any) -> Tensor:
        """The product by a resolved route, without autograd: contiguous, or channels_last where x is."""
        check_once(index, len(values), math.prod(constants[0]))
        y: Tensor = self._without_autocast(self._forward, x, scale, values, index, *constants)
        return y.contiguous(memory_format=memory_format(x))

    def backward(
        self,
        gy: Tensor,
        x: Tensor,
        scale: Tensor | None,
        values: Tensor,
        index: Tensor,
        needs: Needs,
        *constants: Any,
    ) -> Gradients:
        """The gradients wanted, in the formats, shapes and dtypes of what they belong to."""
        check_once(index, len(values), math.prod(constants[0]))
        gradients = self._without_autocast(self._backward, gy, x, scale, values, index, needs, *constants)
        gx, gscale, gvalues = gradients
        if gx is not None:
            gx = gx.to(x.dtype).view(x.shape).contiguous(memory_format=memory_format(x))
        if scale is not None and gscale is not None:
            gscale = gscale.to(scale.dtype).reshape(scale.shape)
        return gx, gscale, None if gvalues is None else gvalues.to(values.dtype)

    @staticmethod
    def _without_autocast(function: Callable[..., Any], x: Tensor, *arguments: Any) -> Any:
        if not _autocast(x):
            return function(x, *arguments)
        with torch.autocast(x.device.type, enabled=False):
            return function(x, *arguments)

    def _operator_forward(
        self, x: Tensor, scale: Tensor | None, values: Tensor, index: Tensor, *constants: Any
    ) -> Tensor:
        return self.forward(x, scale, values, index, *self.resolved(x, values, constants))

    def _all_gradients(
        self,
        gy: Tensor,
        x: Tensor,
        scale: Tensor | None,
        values: Tensor,
        index: Tensor,
        needs: Needs,
        *constants: Any,
    ) -> tuple[Tensor, ...]:
        constants = self.resolved(x, values, constants)
        gradients = self.backward(gy, x, scale, values, index, needs, *constants)
        return tuple(gy.new_empty(0) if g is None else g for g in gradients)

    @staticmethod
    def _like_gradients(
        gy: Tensor, x: Tensor, scale: Tensor | None, values: Tensor, index: Tensor, needs: Needs, *constants: Any
    ) -> tuple[Tensor, ...]:
        gx = torch.empty_like(x, memory_format=memory_format(x)) if needs[0] else gy.new_empty(0)
        gscale = gy.new_empty(0) if scale is None or not needs[1] else torch.empty_like(scale)
        return gx, gscale, torch.empty_like(values) if needs[2] else gy.new_empty(0)

    @staticmethod
    def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, scale, values, index, *ctx.constants = inputs
        ctx.save_for_backward(x, scale, values, index)

    def _operator_backward(self, ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        needs = list(ctx.needs_input_grad[:3])
        gradients = self.backward_operator(gy, *ctx.saved_tensors, needs, *ctx.constants)
        wanted = (g if need else None for g, need in zip(gradients, needs, strict=True))
        return *wanted, None, *(None for _ in ctx.constants)


class _Apply(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor | None,
        values: Tensor,
        index: Tensor,
        product: Product,
        constants: tuple[Any, ...],
    ) -> Tensor:
        ctx.save_for_backward(x, scale, values, index)
        ctx.product, ctx.constants = product, product.resolved(x, values, constants)
        y = product.forward(x, scale, values, index, *ctx.constants)
        return torch.ops.aten._unsafe_view(y, y.shape) if y._is_view() else y  # so that a bias may be added in place

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gy,), needs, product, constants = gradients, ctx.needs_input_grad[:3], ctx.product, ctx.constants
        x, scale, values, index = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_differentiable(product, gy, (x, scale, values), index, needs, constants), None, None, None
        return *product.backward(gy, x, scale, values, index, needs, *constants), None, None, None


def _differentiable(
    product: Product,
    gy: Tensor,
    inputs: tuple[Tensor | None, ...],
    index: Tensor,
    needs: Needs,
    constants: tuple[Any, ...],
) -> list[Tensor | None]:
    """The gradients with a graph of their own, through the reference."""
    aliases = [None if tensor is None else tensor.view_as(tensor) for tensor in inputs]  # or one could lead to another
    y = product.reference(*aliases, index, *constants)
    wanted = [tensor for tensor, need in zip(aliases, needs, strict=True) if need]
    found = iter(torch.autograd.grad(y, wanted, gy, create_graph=True))  # type: ignore[arg-type]
    return [next(found) if need else None for need in needs]


def _autocast(x: Tensor) -> bool:
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _hashable(arguments: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(tuple(a) if isinstance(a, list) else a for a in arguments)


def memory_format(x: Tensor) -> torch.memory_format:
    """channels_last (of 4 or 5 axes) if x is that and not contiguous, else contiguous."""
    if x.ndim not in (4, 5) or x.is_contiguous() or not x.is_contiguous(memory_format=last_format(x)):
        return torch.contiguous_format
    return last_format(x)


def last_format(x: Tensor) -> torch.memory_format:
    """channels_last for 4 axes, for 5 its like."""
    return torch.channels_last if x.ndim == 4 else torch.channels_last_3d
