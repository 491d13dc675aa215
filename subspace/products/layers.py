"""nn.Linear and nn.Conv1d, 2d, 3d as products with plain zero padding over a batch."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import torch.nn.functional as F
from torch import Tensor, nn

from subspace.products.geometry import LINEAR, Geometry

Layer: TypeAlias = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class ProductInput(NamedTuple):
    """x: (rows, n_in), or (N, C, *spatial), padded already where the geometry's zeros on both sides are not enough."""

    x: Tensor
    geometry: Geometry


def as_product(layer: Layer, x: Tensor) -> ProductInput:
    """The layer's input and geometry: whatever its padding and padding_mode, and with or without a batch axis.

    As its forward reads them: what is padded with zeros may have been given other sizes since it was made.
    """
    if isinstance(layer, nn.Linear):
        return ProductInput(x.reshape(-1, layer.in_features), LINEAR)
    axes = len(layer.kernel_size)
    x = x if x.ndim == axes + 2 else x.unsqueeze(0)
    stride, dilation = _for_each(layer.stride, axes), _for_each(layer.dilation, axes)
    if layer.padding_mode != "zeros":
        x, padding = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode), (0,) * axes
    elif layer.padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, layer.kernel_size, strict=True)]
        padding = tuple(n // 2 for n in total)
        if any(n % 2 for n in total):  # torch has the greater part after it
            x = F.pad(x, [end for n in reversed(total) for end in (0, n % 2)])
    else:
        padding = _for_each(0 if layer.padding == "valid" else layer.padding, axes)
    return ProductInput(x, Geometry(layer.kernel_size, stride, padding, dilation, layer.groups))


def _for_each(value: Any, axes: int) -> tuple[int, ...]:
    """A number for each axis: those of a layer may be changed, to one number for all."""
    if isinstance(value, tuple) and len(value) == axes:
        return value
    return (value,) * axes if isinstance(value, int) else tuple(value) * (axes if len(value) == 1 else 1)
