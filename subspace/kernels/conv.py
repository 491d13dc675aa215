"""y = w * x, a convolution with w = scale T + S, which is never saved and by most routes never built."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from subspace.kernels import bottleneck, dense, matrix, native, native_conv, pointwise, reference, sparse_conv
from subspace.kernels.costs import Problem
from subspace.kernels.geometry import Geometry
from subspace.kernels.product import Gradients, Needs, Product, last_format, memory_format
from subspace.kernels.router import choose


def conv(
    x: Tensor,
    scale: Tensor | None,
    values: Tensor,
    index: Tensor,
    shape: tuple[int, ...],
    transform: str,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    route: str = "auto",
) -> Tensor:
    """The convolution of x with w, zero-padded: (N, C, *spatial) -> (N, C_out, *spatial'), 1 to 3 spatial axes.

    In the dtype of x, or autocast's, and channels_last where x is. scale: one element, None if transform is "zero"
    (else "dct" or "hadamard"); S holds values: (k,) at the flat, sorted index: (k,). Raises ValueError for an x of
    another shape, and for a route that cannot do this.
    """
    if x.ndim != len(shape) or x.shape[1] != shape[1] * groups:
        raise ValueError(f"x must have {len(shape)} axes and {shape[1] * groups} channels, got shape {tuple(x.shape)}")
    return _conv(x, scale, values, index, shape, transform, stride, padding, dilation, groups, route)


def routes(x: Tensor, shape: tuple[int, ...], transform: str, geometry: Geometry) -> list[str]:
    """Those that can do this."""
    found = ["dense", "remat"]
    if x.ndim > 3:
        found.append("channels_last")
    taps = math.prod(geometry.kernel)
    if taps > 1 and transform != "hadamard":
        found.append("bottleneck")
    if taps == 1 and geometry.groups == 1:
        found.append("fft")
    if _compiled(x, shape, transform, geometry):
        found.append("native")
    return found


def _compiled(x: Tensor, shape: tuple[int, ...], transform: str, geometry: Geometry) -> bool:
    if math.prod(geometry.kernel) == 1:
        return geometry.groups == 1 and native.takes(shape, transform, x)
    return native_conv.takes_conv(shape, transform, x, geometry.stride, geometry.groups)


def problem(
    x: Tensor,
    k: int,
    shape: tuple[int, ...],
    transform: str,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Problem:
    """What the choice of a route depends on; k: the nonzeros of S."""
    last = memory_format(x) != torch.contiguous_format
    what = "conv", shape, k, transform, tuple(x.shape), x.dtype, x.device.type, last
    return Problem(*what, stride, padding, dilation, groups)


def _resolve(
    x: Tensor,
    values: Tensor,
    shape: tuple[int, ...],
    transform: str,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    route: str,
) -> str:
    geometry = Geometry(shape[2:], stride, padding, dilation, groups)
    possible = routes(x, shape, transform, geometry)
    if route not in ("auto", *possible):
        raise ValueError(f"route must be one of {', '.join(['auto', *possible])}, got {route!r}")
    if x.numel() == 0:  # which some FFT libraries refuse
        return "dense"
    if route != "auto":
        return route
    return choose(problem(x, len(values), shape, transform, *geometry[1:]), tuple(possible))


def _forward(
    x: Tensor,
    scale: Tensor | None,
    values: Tensor,
    index: Tensor,
    shape: tuple[int, ...],
    transform: str,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    route: str,
) -> Tensor:
    geometry = Geometry(shape[2:], stride, padding, dilation, groups)
    what = scale, values, index, shape, transform
    if math.prod(geometry.kernel) == 1 and route in ("fft", "native"):
        return pointwise.forward(x, *what, route, geometry)
    if route == "native":
        return native_conv.conv(x, scale, values.float(), index, shape, transform, padding, dilation)
    if route == "bottleneck":
        return bottleneck.forward(x, *what, geometry)
    if route == "channels_last":
        x = x.contiguous(memory_format=last_format(x))
    return geometry.convolve(x, matrix.weight(*what, x))


def _backward(
    gy: Tensor,
    x: Tensor,
    scale: Tensor | None,
    values: Tensor,
    index: Tensor,
    needs: Needs,
    shape: tuple[int, ...],
    transform: str,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    route: str,
) -> Gradients:
    geometry = Geometry(shape[2:], stride, padding, dilation, groups)
    what = scale, values, index
    if math.prod(geometry.kernel) == 1 and route in ("fft", "native"):
        return pointwise.backward(gy, x, *what, needs, shape, transform, route, geometry)
    if route == "native":
        return native_conv.conv_backward(
            gy, x, scale, values.float(), index, needs, shape, transform, padding, dilation
        )
    by_bags = functools.partial(sparse_conv.backward, gy, x, values, index, shape, geometry)
    if route == "bottleneck":
        return bottleneck.backward(by_bags, gy, x, scale, needs, shape, transform, geometry)
    if route == "remat":
        return dense.by_products(geometry.gradients, by_bags, gy, x, *what, needs, shape, transform)
    if route == "channels_last":
        gy, x = (t.contiguous(memory_format=last_format(t)) for t in (gy, x))
    return dense.by_weight_gradient(geometry.gradients, gy, x, *what, needs, shape, transform)


def _like(
    x: Tensor,
    shape: tuple[int, ...],
    transform: str,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    route: str,
) -> Tensor:
    geometry = Geometry(tuple(shape[2:]), stride, padding, dilation, groups)
    y = x.new_empty(x.shape[0], shape[0], *geometry.sizes(tuple(x.shape[2:])))
    return y.contiguous(memory_format=memory_format(x))


def _reference(
    x: Tensor,
    scale: Tensor | None,
    values: Tensor,
    index: Tensor,
    shape: tuple[int, ...],
    transform: str,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    route: str,
) -> Tensor:
    geometry = Geometry(tuple(shape[2:]), stride, padding, dilation, groups)
    return reference.conv(x, scale, values, index, shape, transform, geometry)


_conv = Product(
    "conv",
    "int[] shape, str transform, int[] stride, int[] padding, int[] dilation, int groups, str route",
    _forward,
    _backward,
    _like,
    _reference,
    _resolve,
)
