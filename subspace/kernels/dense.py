"""Gradients by a dense w, or T, built for the backward pass and dropped; for linear maps and convolutions alike."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from subspace.fixed import wide
from subspace.kernels import matrix
from subspace.kernels.product import Gradients, Needs

Dense = Callable[[Tensor, Tensor, Tensor, bool, bool], tuple[Tensor | None, Tensor | None]]
"""(gy, x, w, needs_x, needs_w) -> (gx, gw)."""

Sparse = Callable[[Tensor | None, bool], Tensor | None]
"""(gx, needs_values) -> gvalues, adding S^T gy to gx in place if given."""


def by_weight_gradient(
    dense: Dense,
    gy: Tensor,
    x: Tensor,
    scale: Tensor | None,
    values: Tensor,
    index: Tensor,
    needs: Needs,
    shape: tuple[int, ...],
    transform: str,
) -> Gradients:
    """All gradients from the dense one to w, which is there for this moment only."""
    needs_w = needs[1] or needs[2]
    w = matrix.weight(scale, values, index, shape, transform, x) if needs[0] else x.new_empty(shape)
    gx, gw = dense(gy, x, w, needs[0], needs_w)
    if gw is None:
        return gx, None, None
    flat = gw.reshape(-1)
    gscale = dot(flat, matrix.scaled(None, shape, transform, x)) if scale is not None and needs[1] else None
    return gx, gscale, flat.index_select(0, index) if needs[2] else None


def by_products(
    dense: Dense,
    sparse: Sparse,
    gy: Tensor,
    x: Tensor,
    scale: Tensor | None,
    values: Tensor,
    index: Tensor,
    needs: Needs,
    shape: tuple[int, ...],
    transform: str,
) -> Gradients:
    """Without the gradient to w: <x, T^T gy> for the scale, the sparse part's own dot products for the values."""
    if scale is None or not needs[1]:
        gx = None
        if needs[0]:
            gx, _ = dense(gy, x, matrix.weight(scale, values, index, shape, transform, x), True, False)
        return gx, None, sparse(None, True) if needs[2] else None
    product, _ = dense(gy, x, matrix.scaled(None, shape, transform, x).to(x.dtype), True, False)
    return finish(product, sparse, x, scale, needs)


def finish(product: Tensor | None, sparse: Sparse, x: Tensor, scale: Tensor | None, needs: Needs) -> Gradients:
    """All gradients from T^T gy, which is overwritten; None for it stands for zero, or not needed."""
    gscale = gx = None
    if product is not None and scale is not None:
        gscale = dot(x, product) if needs[1] else None
        gx = product.mul_(scale) if needs[0] else None
    elif needs[0]:
        gx = torch.zeros_like(x)
    return gx, gscale, sparse(gx, needs[2]) if needs[0] or needs[2] else None


def dot(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> of tensors of one shape, summed in float32 at least."""
    dtype = wide(a.dtype)
    return torch.dot(a.reshape(-1).to(dtype), b.reshape(-1).to(dtype))
