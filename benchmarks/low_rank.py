"""A method of one's own for studies: low rank between fixed random frames, beside frozen random weights.

LoRA-XS (Banaei et al. 2024) on a network that was never trained: w = d + L R M^T, d of FreezeNet, L and M random
orthonormal frames that the key rebuilds, R trained from 0. A study names it "benchmarks.low_rank:LOW_RANK".
"""

from __future__ import annotations

from math import isqrt

import torch
from torch import nn

from subspace import Key, budgets, owner_of, register, targets
from subspace.embeddings import LowRank
from subspace.offsets import Gaussian
from subspace.study import Method
from subspace.study.methods.setting import Setting


def low_rank(model: nn.Module, s: Setting) -> nn.Module:
    """As many numbers in every tensor (EPL), in an R that is as nearly square as the frames allow."""
    chosen = targets(model)
    weights = {name: target.weight for name, target in chosen.items()}
    total = budgets.entries(sum(w.numel() for w in weights.values()), s.size.get("density"), s.size.get("dim"))
    counts = budgets.epl([w.shape for w in weights.values()], total)
    for (name, weight), count in zip(weights.items(), counts, strict=True):
        key, (n_out, n_in) = Key(s.seed).fold(name), chosen[name].layout.fans(weight.shape)
        right = max(1, min(n_in, isqrt(count)))
        U = LowRank(weight, max(1, min(n_out, count // right)), right, key=key.fold("U"), layout=chosen[name].layout)
        d = Gaussian(weight, key=key.fold("d"), keep=True, layout=chosen[name].layout)
        register(*owner_of(model, name), d, U, torch.zeros(U.dim))
    return model


LOW_RANK = Method("low rank between random frames", "Gaussian offset", low_rank)
