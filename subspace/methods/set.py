"""SET (Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse connectivity", 2018)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from subspace._base.key import Key
from subspace.methods.moving import Mover
from subspace.methods.ranking import Supports
from subspace.methods.saliencies.base import Objective


class SET(Mover):
    """Grow at random, from the key folded with the tensor's name and the step; `step()` needs no objective.

    The paper's fraction is constant, `decay=constant`, and its new weights are random; here they start at 0.
    """

    def __init__(self, *args: Any, key: Key | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.key = Key(0).fold("SET") if key is None else key

    def grow(self, kept: Supports, counts: dict[str, int], objective: Objective | None) -> Supports:
        grown = {}
        for name, index in kept.items():
            free = self.parts[name].sparse.shape.numel() - len(index)
            drawn = self.key.fold(name).fold(str(self.steps)).distinct(free, counts[name])
            grown[name] = _outside(index, torch.from_numpy(drawn).sort().values.to(index.device))
        return grown


def _outside(index: Tensor, ranks: Tensor) -> Tensor:
    """The places of these ranks among those not in the sorted index."""
    free_before = index - torch.arange(len(index), device=index.device)
    return ranks + torch.searchsorted(free_before, ranks, right=True)
