"""SNIP (Lee et al., "Single-shot network pruning based on connection sensitivity", ICLR 2019)."""

from __future__ import annotations

from torch import nn

from subspace.methods.saliencies.base import Objective, Scores, Weights, gradients, saliency


@saliency
def snip(model: nn.Module, objective: Objective | None, weights: Weights) -> Scores:
    """|g w|, g the gradient of the objective; without the paper's normalisation, which changes no order.

    (FORCE's public code, and what was made from it, uses `nll_loss` on raw logits, which is not a likelihood.) In
    rounds it is Iterative SNIP: `supports(model, snip, ..., steps=60)`.

    Args:
        model: It stays as it is.
        objective: A function of the model that returns a loss, such as cross-entropy.
        include: Which tensors, as of `targets`.
        exclude: Which tensors not, as of `targets`.
        basis: weight -> a `Transform`, as `embeddings.DCT`: coefficients are scored in place of the weights.

    Returns:
        A score for every entry of every weight, by qualified name.
    """
    return {name: (g * weights[name]).abs() for name, g in gradients(model, objective, weights).items()}
