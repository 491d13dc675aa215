"""A product of the channels alone, at every row or pixel: a convolution of one tap as one without a geometry.

What the stride and the padding leave of x is laid out as rows (pixels, C) where the channels come last, and as planes
(N, C, 1, pixels) else; a linear map's x: (rows, n_in) stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from subspace.products.geometry import LINEAR, Geometry, Window, memory_format
from subspace.products.weight import Gradients, Weight

PLANES = Geometry((1, 1), (1, 1), (0, 0), (1, 1), 1)


def forward(product: Callable[[Tensor, Weight, Geometry], Tensor], x: Tensor, w: Weight, geometry: Geometry) -> Tensor:
    """w x at each pixel: (N, C, *spatial) -> (N, C_out, *spatial'), by product(rows or planes, w, LINEAR or PLANES)."""
    if not geometry.kernel:
        return product(x, w, geometry)
    seen, lands = _windows(x, geometry)
    z, last = x[seen], memory_format(x) != torch.contiguous_format
    if not z.numel():
        return x.new_zeros(len(x), w.shape[0], *geometry.sizes(tuple(x.shape[2:])))
    y = _restored(product(_flat(z, last), *_flat_weight(w, last)), (len(z), w.shape[0], *z.shape[2:]), last)
    if not any(geometry.padding):
        return y
    padded = y.new_zeros(*y.shape[:2], *geometry.sizes(tuple(x.shape[2:])))
    padded[lands] = y
    return padded


def backward(
    gradients: Callable[[Tensor, Tensor, Weight, Geometry], Gradients],
    gy: Tensor,
    x: Tensor,
    w: Weight,
    geometry: Geometry,
) -> Gradients:
    """All gradients, as `forward`, by gradients(gy, x, w, geometry) of rows or planes."""
    if not geometry.kernel:
        return gradients(gy, x, w, geometry)
    seen, lands = _windows(x, geometry)
    z, last = x[seen], memory_format(x) != torch.contiguous_format
    if not z.numel():
        return Gradients(*(None if t is None else torch.zeros_like(t) for t in (x, w.scale, w.values)))
    found = gradients(_flat(gy[lands], last), _flat(z, last), *_flat_weight(w, last))
    if found.x is None:
        return found
    gx = _restored(found.x, z.shape, last)
    if gx.shape == x.shape:
        return found._replace(x=gx)
    spread = torch.zeros_like(x)
    spread[seen] = gx
    return found._replace(x=spread)


def _windows(x: Tensor, geometry: Geometry) -> tuple[Window, Window]:
    """What of x is seen, and where in y it lands."""
    spatial = tuple(x.shape[2:])
    seen, lands = geometry.window(0, spatial, tuple(slice(0, size) for size in geometry.sizes(spatial)))
    both = slice(None), slice(None)
    return (*both, *seen), (*both, *lands)


def _flat(z: Tensor, last: bool) -> Tensor:
    if last:
        return z.movedim(1, -1).reshape(-1, z.shape[1])
    return z.reshape(*z.shape[:2], 1, math.prod(z.shape[2:])).contiguous()


def _flat_weight(w: Weight, last: bool) -> tuple[Weight, Geometry]:
    return w._replace(shape=w.shape[:2] if last else (*w.shape[:2], 1, 1)), LINEAR if last else PLANES


def _restored(y: Tensor, shape: tuple[int, ...], last: bool) -> Tensor:
    return y.view(shape[0], *shape[2:], shape[1]).movedim(-1, 1) if last else y.view(shape)
