"""GraSP (Wang et al., "Picking winning tickets before training by preserving gradient flow", ICLR 2020)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from subspace._base.dtypes import at_least_float32
from subspace.methods.saliencies.base import Objective, Scores, Weights, gradients, mean, saliency


@saliency
def grasp(model: nn.Module, objective: Objective | None, weights: Weights) -> Scores:
    """w * (H g), the negative of the paper's score -w * (H g), of which the highest are removed.

    g and H are the gradient and the Hessian of the objective with respect to the chosen weights. (The paper's code
    takes H in two halves of the batch to save memory, which changes nothing where the objective is a sum over samples.)
    Costs two backward passes.

    Args:
        model: It stays as it is.
        objective: A function of the model that returns a loss. The paper's is cross_entropy(net(x) / 200, y) on ten
            samples of every class.
        include: Which tensors, as of `targets`.
        exclude: Which tensors not, as of `targets`.
        basis: weight -> a `Transform`, as `embeddings.DCT`: coefficients are scored in place of the weights.

    Returns:
        A score for every entry of every weight, by qualified name.
    """
    with sdpa_kernel(SDPBackend.MATH):  # the other kernels of attention have no second derivative
        slopes = gradients(model, objective, weights, create_graph=True)
        norm = sum((g * mean(g.detach())).sum() for g in slopes.values())
        curved = torch.autograd.grad(norm, list(weights.values()), materialize_grads=True)  # type: ignore[arg-type]
    wide = [mean(hg.to(at_least_float32(hg.dtype))) for hg in curved]
    return {name: w.to(hg.dtype) * hg for (name, w), hg in zip(weights.items(), wide, strict=True)}
