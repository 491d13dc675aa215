"""A product with w = scale T + S as an operator: w never saved for the backward pass, every mode of torch served.

Eagerly it is an autograd.Function that calls a route directly, for the least overhead; in a compiled graph, on fake and
meta tensors, on subclasses and under dispatch modes an operator `subspace::product` with its backward. Inside
torch.func's transforms, in forward-mode differentiation, where gradients are differentiated again, and in programs that
are exported to run without this package it is the plain reference.

Here alone a `Weight` is flattened: torch.library and autograd know nothing but tensors and numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from subspace._base.autocast import as_autocast, without_autocast
from subspace._base.exporting import is_exporting
from subspace.products import reference
from subspace.products.bindings import Binding, Bindings
from subspace.products.choice.selection import select
from subspace.products.form import Form, Given
from subspace.products.geometry import LINEAR, Geometry, memory_format
from subspace.products.problem import Problem
from subspace.products.routes import Route
from subspace.products.sparse_index import Version, checked, version
from subspace.products.weight import Gradients, Needs, Weight


def linear(x: Tensor, w: Weight, route: str = "auto") -> Tensor:
    """Multiply x by the transpose of w, without building w where a route can do without.

    Args:
        x: (..., n_in).
        w: Of shape (n_out, n_in).
        route: The name of one of `ROUTES`, or "auto" for the fastest by the cost model.

    Returns:
        y: (..., n_out), in the dtype of x, or autocast's.

    Raises:
        ValueError: For an x of another width, an index that cannot be right, and a route that cannot do this.
    """
    check_input(x, w.shape, LINEAR)
    return multiply(x, w, LINEAR, route)


def conv(x: Tensor, w: Weight, geometry: Geometry, route: str = "auto") -> Tensor:
    """Convolve x with w, zero-padded, without building w where a route can do without.

    Args:
        x: (N, C, *spatial), with 1 to 3 spatial axes.
        w: Of shape (C_out, C / groups, *kernel).
        geometry: Kernel, stride, padding, dilation and groups.
        route: The name of one of `ROUTES`, or "auto" for the fastest by the cost model.

    Returns:
        y: (N, C_out, *spatial'), in the dtype of x, or autocast's, and channels_last where x is.

    Raises:
        ValueError: For an x of another shape, an index that cannot be right, and a route that cannot do this.
    """
    check_input(x, w.shape, geometry)
    return multiply(x, w, geometry, route)


def check_input(x: Tensor, shape: tuple[int, ...], geometry: Geometry) -> None:
    """Raise ValueError unless x is one that a weight of this shape multiplies."""
    if not geometry.kernel:
        if x.ndim == 0 or x.shape[-1] != shape[1]:
            raise ValueError(f"x must have a last axis of {shape[1]}, got shape {tuple(x.shape)}")
    elif x.ndim != len(shape) or x.shape[1] != shape[1] * geometry.groups:
        axes, channels = len(shape), shape[1] * geometry.groups
        raise ValueError(f"x must have {axes} axes and {channels} channels, got shape {tuple(x.shape)}")


def multiply(x: Tensor, w: Weight, geometry: Geometry, route: str = "auto") -> Tensor:
    """`linear` or `conv`, without a look at the shape of x."""
    return multiply_by(x, Given(w), (w.scale, w.values), geometry, route)


def multiply_by(
    x: Tensor,
    form: Form,
    numbers: tuple[Any, ...],
    geometry: Geometry,
    route: str = "auto",
    bindings: Bindings | None = None,
) -> Tensor:
    """`multiply` by the weight that a form makes of numbers: to autograd one step, from x and the numbers to y.

    bindings: of that form, where the products bound to it are kept.
    """
    x = as_autocast(x)
    if (recorded := _is_recorded(x)) and not is_exporting():
        y: Tensor = _operator(x, *_flat(form(*numbers), geometry, route))
        return y
    if recorded or _is_transformed():
        with without_autocast(x):
            return reference.multiply(x, form(*numbers), geometry)
    bound = None if bindings is None else bindings.find(x, numbers[0], geometry, route)
    if not torch.is_grad_enabled():
        return (_ByRoute.of(x, form, numbers, geometry, route) if bound is None else bound).forward(x, *numbers)
    y = _Apply.apply(x, form, geometry, route, bound, *numbers)  # type: ignore[no-untyped-call]
    return y


def _flat(w: Weight, geometry: Geometry, route: str) -> tuple[Any, ...]:
    """What the operators take after x, in the order of SCHEMA; the kernel is in w's shape."""
    return w.scale, w.values, w.index, w.signs, w.matrix, w.shape, w.transform, *geometry[1:], route


def _whole(flat: Sequence[Any]) -> tuple[Weight, Geometry, str]:
    """The inverse of `_flat`, for lists in the place of tuples too."""
    scale, values, index, signs, matrix, shape, transform, stride, padding, dilation, groups, route = flat
    shape = tuple(shape)
    geometry = Geometry(shape[2:], tuple(stride), tuple(padding), tuple(dilation), groups)
    return Weight(scale, values, index, shape, transform, signs, matrix), geometry, route


def _forward(x: Tensor, w: Weight, geometry: Geometry, route: Route) -> Tensor:
    """By this route, without autograd: contiguous, or channels_last where x is; the index has been checked."""
    with without_autocast(x):
        y = route.forward(*_taken(x, w, geometry, route), geometry)
    if geometry.kernel:
        return y.contiguous(memory_format=memory_format(x))
    y = y.contiguous()
    return y if x.ndim == 2 else y.view(*x.shape[:-1], w.shape[0])


def _backward(gy: Tensor, x: Tensor, w: Weight, geometry: Geometry, route: Route, needs: Needs) -> Gradients:
    """By this route, in the formats, shapes and dtypes of what the gradients belong to; the index has been checked."""
    form = memory_format(x)
    gy = gy.contiguous(memory_format=form) if geometry.kernel else _rows(gy)
    with without_autocast(x):
        gx, gscale, gvalues = route.backward(gy, *_taken(x, w, geometry, route), geometry, needs)
        if w.signs is not None and not route.takes_signs:
            gx = None if gx is None else w.turn_input(gx)
            gvalues = None if gvalues is None else w.turn_values(gvalues)
    if gx is not None:
        gx = _like(gx, x).contiguous(memory_format=form)
    gscale = None if gscale is None or w.scale is None else _like(gscale, w.scale)
    return Gradients(gx, gscale, None if gvalues is None else _like(gvalues, w.values))


def _like(gradient: Tensor, tensor: Tensor) -> Tensor:
    """A gradient in the dtype and shape of what it belongs to."""
    if gradient.dtype != tensor.dtype:
        gradient = gradient.to(tensor.dtype)
    return gradient if gradient.shape == tensor.shape else gradient.reshape(tensor.shape)


def _checked(w: Weight) -> Version | None:
    return checked(w.index, w.values.shape[0], math.prod(w.shape))


def _taken(x: Tensor, w: Weight, geometry: Geometry, route: Route) -> tuple[Tensor, Weight]:
    """x and w as the route takes them: in rows, or in one of two formats; turned, if it knows no signs."""
    x = x.contiguous(memory_format=memory_format(x)) if geometry.kernel else _rows(x)
    return (x, w) if w.signs is None or route.takes_signs else (w.turn_input(x), w.turned())


def _rows(x: Tensor) -> Tensor:
    return x if x.ndim == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


class _ByRoute(NamedTuple):
    """A product by a route's own methods, of a weight whose index was right at a version."""

    w: Weight
    form: Form
    geometry: Geometry
    route: Route
    version: Version | None

    @classmethod
    def of(cls, x: Tensor, form: Form, numbers: tuple[Any, ...], geometry: Geometry, name: str) -> _ByRoute:
        w = form(*numbers)
        now, route = _checked(w), select(Problem.of(x, w, geometry), name)
        return cls(w, form, geometry, route, now)

    @property
    def fixed(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return self.w.index, self.w.signs, self.w.matrix

    def forward(self, x: Tensor, *numbers: Tensor | None) -> Tensor:
        return _forward(x, self.w, self.geometry, self.route)

    def backward(
        self, gy: Tensor, x: Tensor, numbers: Sequence[Tensor | None], needs: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        if self.version is None or version(self.w.index) != self.version:
            _checked(self.w)
        wanted = Needs(needs[0], *self.form.needs(needs[1:]))
        found = _backward(gy, x, self.w, self.geometry, self.route, wanted)
        return found.x, *self.form.adjoint(found)


class _Apply(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, form: Form, geometry: Geometry, name: str, bound: Binding | None, *numbers: Any
    ) -> Tensor:
        product = _ByRoute.of(x, form, numbers, geometry, name) if bound is None else bound
        ctx.form, ctx.geometry, ctx.product = form, geometry, product
        ctx.save_for_backward(x, *product.fixed, *numbers)
        y = product.forward(x, *numbers)
        return torch.ops.aten._unsafe_view(y, y.shape) if y._is_view() else y  # so that a bias may be added in place

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gy,), (x, *saved) = gradients, ctx.saved_tensors  # which raises for what was written to since
        needs = ctx.needs_input_grad[:1] + ctx.needs_input_grad[5:]
        if torch.is_grad_enabled():
            gx, *others = _differentiable(gy, x, saved, ctx, needs)
        else:
            gx, *others = ctx.product.backward(gy, x, saved[3:], needs)
        return gx, None, None, None, None, *others


def _differentiable(
    gy: Tensor, x: Tensor, saved: Sequence[Tensor | None], ctx: Any, wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The gradients to x and the numbers, with a graph of their own, through the reference."""
    index, signs, matrix, *numbers = saved
    inputs = [None if t is None else t.view_as(t) for t in (x, *numbers)]  # or one could lead to another
    w = ctx.form(*inputs[1:])._replace(index=index, signs=signs, matrix=matrix)
    y = reference.multiply(inputs[0], w, ctx.geometry)  # type: ignore[arg-type]
    inputs = [tensor for tensor, need in zip(inputs, wanted, strict=True) if need]
    found = iter(torch.autograd.grad(y, inputs, gy, create_graph=True))  # type: ignore[arg-type]
    return tuple(next(found) if need else None for need in wanted)


INPUTS = (
    "Tensor x, Tensor? scale, Tensor values, Tensor index, Tensor? signs, Tensor? matrix, int[] shape, str transform, "
    "int[] stride, int[] padding, int[] dilation, int groups, str route"
)


@torch.library.custom_op("subspace::product", mutates_args=(), schema=f"({INPUTS}) -> Tensor")
def _operator(x: Tensor, *flat: Any) -> Tensor:
    w, geometry, name = _whole(flat)
    _checked(w)
    return _forward(x, w, geometry, select(Problem.of(x, w, geometry), name))


@_operator.register_fake
def _(x: Tensor, *flat: Any) -> Tensor:
    w, geometry, _ = _whole(flat)
    if not geometry.kernel:
        return x.new_empty(*x.shape[:-1], w.shape[0])
    y = x.new_empty(x.shape[0], w.shape[0], *geometry.sizes(tuple(x.shape[2:])))
    return y.contiguous(memory_format=memory_format(x))


@torch.library.custom_op(
    "subspace::product_backward",
    mutates_args=(),
    schema=f"(Tensor gy, bool[] needs, {INPUTS}) -> (Tensor, Tensor, Tensor)",
)
def _backward_operator(gy: Tensor, needs: Sequence[bool], x: Tensor, *flat: Any) -> tuple[Tensor, ...]:
    w, geometry, name = _whole(flat)
    route = select(Problem.of(x, w, geometry), name)
    _checked(w)
    gradients = _backward(gy, x, w, geometry, route, Needs(*needs))
    return tuple(gy.new_empty(0) if g is None else g for g in gradients)


@_backward_operator.register_fake
def _(gy: Tensor, needs: Sequence[bool], x: Tensor, *flat: Any) -> tuple[Tensor, ...]:
    scale, values = flat[:2]
    gx = torch.empty_like(x, memory_format=memory_format(x)) if needs[0] else gy.new_empty(0)
    gscale = gy.new_empty(0) if scale is None or not needs[1] else torch.empty_like(scale)
    return gx, gscale, torch.empty_like(values) if needs[2] else gy.new_empty(0)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.constants = inputs[6:]


def _operator_gradients(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad[:3])
    gradients = _backward_operator(gy, needs, *ctx.saved_tensors, *ctx.constants)
    wanted = (g if need else None for g, need in zip(gradients, needs, strict=True))
    return *wanted, None, None, None, *(None for _ in ctx.constants)


_operator.register_autograd(_operator_gradients, setup_context=_setup_context)


def _is_recorded(x: Tensor) -> bool:
    """Whether somebody has to see an operator: a compiler, a tensor without numbers of its own, a dispatch mode."""
    if torch.compiler.is_compiling() or type(x) not in (Tensor, nn.Parameter) or x.is_meta:
        return True
    return torch._C._len_torch_dispatch_stack() > 0


def _is_transformed() -> bool:
    """Whether plain operators are asked for: by torch.func, forward-mode differentiation, a trace of TorchScript."""
    if torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0:
        return True
    return torch._C._get_tracing_state() is not None
