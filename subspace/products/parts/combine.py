"""All gradients of a product from T^T gy and the sparse part."""

from __future__ import annotations

import torch
from torch import Tensor

from subspace.products.geometry import Geometry
from subspace.products.parts import sparse
from subspace.products.parts.matrix import dot
from subspace.products.weight import Gradients, Needs, Weight


def combine(product: Tensor | None, gy: Tensor, x: Tensor, w: Weight, geometry: Geometry, needs: Needs) -> Gradients:
    """product: T^T gy, which is overwritten; None stands for zero, or not needed."""
    gscale = gx = None
    if product is not None and w.scale is not None:
        gscale = dot(x, product) if needs.scale else None
        gx = times(product, w.scale) if needs.x else None
    elif needs.x:
        gx = torch.zeros_like(x)
    gvalues = sparse.backward(gy, x, w, geometry, gx, needs.values) if needs.x or needs.values else None
    return Gradients(gx, gscale, gvalues)


def times(y: Tensor, scale: Tensor) -> Tensor:
    """scale y, in the place of y; where it is known to be y, nothing is done."""
    return y if scale.device.type == "cpu" and scale.item() == 1 else y.mul_(scale)
