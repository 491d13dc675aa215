"""nn.Linear and nn.Conv1d, 2d, 3d as products with plain zero padding over a batch."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

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
    """The layer's input and geometry: whatever its padding and padding_mode, and with or without a batch axis."""
    if isinstance(layer, nn.Linear):
        return ProductInput(x.reshape(-1, layer.in_features), LINEAR)
    axes = len(layer.kernel_size)
    x = x if x.ndim == axes + 2 else x.unsqueeze(0)
    ends = layer._reversed_padding_repeated_twice  # (before, after) of the last axis, then of the one before it, ...
    padding = tuple(reversed(ends[::2]))
    if layer.padding_mode != "zeros":
        x, padding = F.pad(x, ends, mode=layer.padding_mode), (0,) * axes
    elif ends[::2] != ends[1::2]:
        x, padding = F.pad(x, ends), (0,) * axes
    return ProductInput(x, Geometry(layer.kernel_size, layer.stride, padding, layer.dilation, layer.groups))
