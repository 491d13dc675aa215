"""Convolutions of one tap by transforms over the channels, T x + S x at each pixel: the routes "fft" and "native"."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from subspace.kernels import fast, linear, native, sparse_conv
from subspace.kernels.geometry import Geometry, Window
from subspace.kernels.product import Gradients, Needs, memory_format

PLAIN = Geometry((1, 1), (1, 1), (0, 0), (1, 1), 1)


def forward(
    x: Tensor,
    scale: Tensor | None,
    values: Tensor,
    index: Tensor,
    shape: tuple[int, ...],
    transform: str,
    route: str,
    geometry: Geometry,
) -> Tensor:
    """w x at each pixel that the stride and the padding leave: (N, C, *spatial) -> (N, C_out, *spatial')."""
    seen, lands = _windows(x, geometry)
    z, what = x[seen], (scale, values, index)
    if memory_format(x) != torch.contiguous_format:
        y = linear.forward(z.movedim(1, -1), *what, shape[:2], transform, route).movedim(-1, 1)
    else:
        flat = _line(z)
        if route == "native":
            y = native.forward(flat.squeeze(2), *what, shape, transform).to(x.dtype)
        else:
            y = fast.forward(flat, scale, shape, transform)
            sparse_conv.forward(flat, values, index, (*shape[:2], 1, 1), PLAIN, y)
        y = y.view(len(y), shape[0], *z.shape[2:])
    if not any(geometry.padding):
        return y
    padded = y.new_zeros(*y.shape[:2], *geometry.sizes(tuple(x.shape[2:])))
    padded[lands] = y
    return padded


def backward(
    gy: Tensor,
    x: Tensor,
    scale: Tensor | None,
    values: Tensor,
    index: Tensor,
    needs: Needs,
    shape: tuple[int, ...],
    transform: str,
    route: str,
    geometry: Geometry,
) -> Gradients:
    """All gradients, as `forward`."""
    seen, lands = _windows(x, geometry)
    z, gz = x[seen], gy[lands]
    gx: Tensor | None
    if memory_format(x) != torch.contiguous_format:
        rows = gz.movedim(1, -1), z.movedim(1, -1)
        gx, gscale, gvalues = linear.backward(*rows, scale, values, index, needs, shape[:2], transform, route)
        gx = None if gx is None else gx.view(rows[1].shape).movedim(-1, 1)
    else:
        flat, gflat = _line(z), _line(gz)
        if route == "native":
            planes = gflat.squeeze(2), flat.squeeze(2)
            gx, gscale, gvalues = native.backward(*planes, scale, values, index, needs, shape, transform)
        else:
            what = gflat, flat, values, index, (*shape[:2], 1, 1), PLAIN
            by_bags = functools.partial(sparse_conv.backward, *what)
            gx, gscale, gvalues = fast.backward(by_bags, gflat, flat, scale, needs, shape, transform)
        gx = None if gx is None else gx.view(z.shape)
    if gx is None or gx.shape == x.shape:
        return gx, gscale, gvalues
    spread = torch.zeros_like(x)
    spread[seen] = gx
    return spread, gscale, gvalues


def _windows(x: Tensor, geometry: Geometry) -> tuple[Window, Window]:
    """What of x is seen, and where in y it lands."""
    spatial = tuple(x.shape[2:])
    seen, lands = geometry.window(0, spatial, tuple(slice(0, size) for size in geometry.sizes(spatial)))
    both = slice(None), slice(None)
    return (*both, *seen), (*both, *lands)


def _line(z: Tensor) -> Tensor:
    """(N, C, *spatial) -> (N, C, 1, pixels), contiguous."""
    return z.reshape(*z.shape[:2], 1, math.prod(z.shape[2:])).contiguous()
