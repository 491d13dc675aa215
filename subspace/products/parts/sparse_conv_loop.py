"""The sparse part S of a convolution with one axpy for each nonzero: the fastest without a compiler on large maps."""

from __future__ import annotations

import math

from torch import Tensor

from subspace.products.geometry import Geometry, Window
from subspace.products.sparse_index import cached_per_index
from subspace.products.weight import Weight

Place = tuple[slice | int, ...]


def forward(x: Tensor, w: Weight, geometry: Geometry, y: Tensor) -> None:
    """y += S * x in place: (N, C, *spatial) -> (N, C_out, *spatial')."""
    for value, (lands, seen) in zip(w.values.tolist(), _places(x, y, w, geometry), strict=True):
        y[lands].add_(x[seen], alpha=value)


def backward(gy: Tensor, x: Tensor, w: Weight, geometry: Geometry, gx: Tensor | None, gvalues: Tensor | None) -> None:
    """gx += S^T gy and gvalues += S's dot products, in place where given."""
    places = _places(x, gy, w, geometry)
    if gx is not None:
        for value, (lands, seen) in zip(w.values.tolist(), places, strict=True):
            gx[seen].add_(gy[lands], alpha=value)
    if gvalues is not None:
        for j, (lands, seen) in enumerate(places):
            gvalues[j] += (gy[lands] * x[seen]).sum()


def _places(x: Tensor, y: Tensor, w: Weight, geometry: Geometry) -> list[tuple[Place, Place]]:
    """For each nonzero what of y it adds to, and what of x it reads."""
    return cached_per_index(w.index, _found, w.shape, geometry, tuple(x.shape[2:]), tuple(y.shape[2:]))


def _found(
    index: Tensor, shape: tuple[int, ...], geometry: Geometry, spatial: tuple[int, ...], out: tuple[int, ...]
) -> list[tuple[Place, Place]]:
    taps, width, n_out = math.prod(shape[2:]), shape[1], shape[0] // geometry.groups
    whole = tuple(slice(0, size) for size in out)
    windows: list[tuple[Window, Window]] = [geometry.window(tap, spatial, whole) for tap in range(taps)]
    found: list[tuple[Place, Place]] = []
    for place in index.tolist():
        row, (channel, tap) = place // (width * taps), divmod(place % (width * taps), taps)
        seen, lands = windows[tap]
        found.append(((slice(None), row, *lands), (slice(None), row // n_out * width + channel, *seen)))
    return found
