"""Magnitude pruning (Han et al., "Learning both weights and connections", 2015), and the random control."""

from __future__ import annotations

import torch
from torch import nn

from subspace._base.key import Key
from subspace.methods.saliencies.base import Chosen, Objective, Scores, Weights, saliency


@saliency
def magnitude(model: nn.Module, objective: Objective | None, weights: Weights) -> Scores:
    """|w|; the objective is not used."""
    return {q: w.abs() for q, w in weights.items()}


def random(key: Key) -> Chosen:
    """The saliency that draws every score uniformly from the key, folded with the weight's name."""

    @saliency
    def uniform(model: nn.Module, objective: Objective | None, weights: Weights) -> Scores:
        drawn = {q: torch.from_numpy(key.fold(q).uniform(w.numel())) for q, w in weights.items()}
        return {q: drawn[q].reshape(w.shape).to(w.device) for q, w in weights.items()}

    return uniform
