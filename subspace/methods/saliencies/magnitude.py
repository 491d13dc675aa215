"""Magnitude pruning (Han et al., "Learning both weights and connections", 2015), and the random control."""

from __future__ import annotations

import torch
from torch import nn

from subspace._base.key import Key
from subspace.methods.saliencies.base import Objective, Scores, TargetSaliency, Weights, saliency


@saliency
def magnitude(model: nn.Module, objective: Objective | None, weights: Weights) -> Scores:
    """|w|; the objective is not used."""
    return {name: w.abs() for name, w in weights.items()}


def random(key: Key) -> TargetSaliency:
    """Make the saliency that draws every score uniformly.

    Args:
        key: Where the scores come from, folded with each weight's name.
    """

    @saliency
    def uniform(model: nn.Module, objective: Objective | None, weights: Weights) -> Scores:
        drawn = {name: torch.from_numpy(key.fold(name).uniform(w.numel())) for name, w in weights.items()}
        return {name: drawn[name].reshape(w.shape).to(w.device) for name, w in weights.items()}

    return uniform
