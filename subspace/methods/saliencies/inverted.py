"""Score inversion, a control of Frankle et al., "Pruning neural networks at initialization" (ICLR 2021).

Where the lowest scores do as well as the highest, scores tell no more than how many entries each tensor needs.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from subspace.methods.saliencies.base import Objective, Saliency, Scores


def inverted(saliency: Saliency) -> Saliency:
    """Make the saliency whose highest scores are the lowest of another.

    Args:
        saliency: The other one, as `methods.snip`.

    Returns:
        The saliency, with the other's arguments.
    """

    def negated(model: nn.Module, objective: Objective | None = None, **options: Any) -> Scores:
        return {name: -s for name, s in saliency(model, objective, **options).items()}

    return negated
