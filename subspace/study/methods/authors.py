"""What Price and Tanner's code does otherwise: its budgets, and what it calls FORCE.

From the code of "Dense for the Price of Sparse" (Price and Tanner, ICML 2021; github IlanPrice/DCTpS, e3219ac, with
scipy 1.2.1), for comparison with their figures only. No count of theirs is exact. Static supports are truncated in
every tensor, and those of RigL are rounded up, since it drops int((1 - density) n) entries: at 172 of FixupResNet110's
weights that comes to between 106 and 220, and to 647 for RigL with a uniform budget. They compare methods at budgets
that differ by as much; a run's `dim` says what was realised.

EPL     what does not fit into a tensor goes to the last one, and what does not fit there is lost
EPF     only the tensors' totals are in proportion to their filters; what does not fit is lost
ERK     a density above 1 is clipped, and the excess is lost
uniform RigL keeps the first tensor dense
FORCE   Iterative SNIP: what is pruned never returns. Every round scores another batch, and keeps all ties
t_end   the step after which U no longer moves is truncated, not rounded

Not repeated of their RigL: at a step that moves U it makes no step of the optimizer, grows by the gradient of the step
before, and leaves Adam's moments where they were, so that a new entry starts with those of a dropped one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Size, Tensor, nn

from subspace import budgets, methods
from subspace.methods import Supports
from subspace.study.methods.setting import Setting

BUDGETS = ("uniform", "epl", "epf_average", "erk")
MOVING = ("uniform", "epl", "erk")  # RigL's


def budget(name: str, density: float, moving: bool = False) -> budgets.Budget:
    """The counts for a density; moving: those of RigL. ValueError for a budget that their code does not have."""
    known = MOVING if moving else BUDGETS
    if name not in known:
        raise ValueError(f"budget must be one of {', '.join(known)} under the rule authors, got {name!r}")

    def counts(shapes: Sequence[Size], total: int) -> list[int]:
        shares = zip(densities(name, shapes, density), (shape.numel() for shape in shapes), strict=True)
        if not moving:
            return [int(share * n) for share, n in shares]
        found = [n - int((1 - share) * n) for share, n in shares]
        if name == "uniform" and len(shapes) > 1:
            found[0] = shapes[0].numel()
        return found

    return counts


def densities(name: str, shapes: Sequence[Size], density: float) -> list[float]:
    """The densities of the tensors, at most 1.

    >>> densities("epl", [Size([10]), Size([100]), Size([40])], 0.6)
    [1.0, 0.3, 1.0]
    """
    numels = [shape.numel() for shape in shapes]
    target = density * sum(numels)
    if name == "uniform":
        return [density] * len(shapes)
    if name == "epl":
        counts = [min(n, target / len(shapes)) for n in numels]
        counts[-1] += target - sum(counts)
    else:
        shares = [shape[0] if name == "epf_average" else sum(shape) for shape in shapes]
        counts = [target / sum(shares) * share for share in shares]
    return [min(count / n, 1.0) for count, n in zip(counts, numels, strict=True)]


def force(model: nn.Module, s: Setting) -> Supports:
    """What their FORCE keeps, in `steps` rounds (theirs: 10); the model stays as it is.

    ValueError where a round is to keep less than one entry.
    """
    scored, rounds, fresh = copy.deepcopy(model), int(s.options["steps"]), s.options["batches"] == "fresh"
    weights = dict(scored.named_parameters())
    kept: dict[str, Tensor] = {}
    for number in range(1, rounds + 1):
        scores = methods.snip(scored, s.loss(s.options["samples"], s.options["loss"], (number - 1) * fresh))
        least = torch.stack([score.min() for score in scores.values()]).min()
        for q, mask in kept.items():
            scores[q][~mask] = least
        everything = torch.cat([score.flatten() for score in scores.values()])
        count = int(len(everything) * math.exp(number * math.log(s.density) / rounds))
        if count < 1:
            raise ValueError(f"density must leave at least one of {len(everything)} weights, got {s.density}")
        bar = everything.topk(count).values[-1]
        kept = {q: score >= bar for q, score in scores.items()}
        with torch.no_grad():
            for q, mask in kept.items():
                weights[q].mul_(mask)
    return {q: mask.flatten().nonzero().squeeze(1) for q, mask in kept.items()}
