"""y = x w^T and its gradients for rows: the dense part of w in one kernel, the sparse in another that adds to it.

(One kernel for both was slower: the sparse part waits for memory and wants many small programs, the dense part few
large ones.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from subspace.products.triton import dense, sparse
from subspace.products.weight import Gradients, Needs, Weight


def forward(x: Tensor, w: Weight) -> Tensor:
    """x w^T: (rows, n_in) -> (rows, n_out)."""
    x, y = x.contiguous(), x.new_empty(len(x), w.shape[0])
    if w.scale is not None:
        dense.forward(x, w, y)
    elif len(w.values) == 0:
        y.zero_()
    if len(w.values):
        sparse.forward(x, w, y, add=w.scale is not None)
    return y


def backward(gy: Tensor, x: Tensor, w: Weight, needs: Needs) -> Gradients:
    """The gradients, those to scale and values in float32."""
    gy, x = gy.contiguous(), x.contiguous()
    gx, gscale, gvalues = torch.empty_like(x) if needs.x else None, None, None
    needs = needs._replace(scale=needs.scale and w.scale is not None)
    if w.scale is not None and (needs.x or needs.scale):
        gscale = dense.backward(gy, x, w, needs, gx)
    elif gx is not None and len(w.values) == 0:
        gx.zero_()
    if len(w.values) and (needs.x or needs.values):
        gvalues = sparse.backward(gy, x, w, gx, w.scale is not None, needs.values)
    elif needs.values:
        gvalues = x.new_zeros(0, dtype=torch.float32)
    return Gradients(gx, gscale, gvalues)
