"""Where alpha of alpha D + S starts in FixupResNet110, whose initialisation is Fixup's."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from subspace import Subspace, subspaces
from subspace.study.models.fixup_resnet110 import FixupResNet, gain


@torch.no_grad()
def set_alphas(model: nn.Module, rule: Literal["authors", "norms"] = "authors") -> nn.Module:
    """Start a FixupResNet110 whose weights are alpha D + S at S = 0 and Fixup's rule for alpha; return the model.

    Last convolutions and classifier: 0; stem: 1. First convolutions, with t the expected norm of a filter of Fixup's
    Gaussian and c the mean norm of one of D: (t / c)^(1/2), as in Price and Tanner's code, or t / c, which matches
    the norms. A weight with a full S and so no alpha starts there too. ValueError for another rule, model or weight.
    """
    if rule not in ("authors", "norms"):
        raise ValueError(f"rule must be authors or norms, got {rule!r}")
    if not isinstance(model, FixupResNet):
        raise ValueError(f"model must be a FixupResNet, got {type(model).__name__}")
    starts = [(space.theta, _start(name, space, rule)) for name, space in subspaces(model)]
    for theta, start in starts:
        theta.copy_(start)
    return model


def _start(name: str, space: Subspace, rule: str) -> Tensor:
    """The theta at which the weight is alpha D: (dim,)."""
    layer, offset, U = name.removesuffix(".weight"), space.parametrization.offset, space.parametrization.embedding
    structure = offset.structure()
    is_zero = structure is not None and structure.is_zero
    if (along := U.parts()[0].direction()) is not None:
        alpha = _alpha(layer, along.offset(), rule)
        if not (is_zero or space.parametrization.column):
            return U.coordinates(alpha * along.offset() - offset())
        theta = torch.zeros_like(space.theta)
        theta[0] = (alpha if is_zero else alpha - 1) / along.scale  # of alpha D, and of (1 + a) D
        return theta
    if is_zero or U.dim < offset.shape.numel():
        raise ValueError(f"{name} must be alpha D + S, got {offset.label()} + {U.label()}")
    return U.coordinates((_alpha(layer, offset(), rule) - 1) * offset())


def _alpha(layer: str, d: Tensor, rule: str) -> float:
    scale, n = gain(layer, d), d[0].numel()
    if layer == "conv1" or scale == 0:
        return 1.0 if scale else 0.0
    match = scale / math.sqrt(n) * chi_mean(n) / d.flatten(1).norm(dim=1).mean().item()
    return match if rule == "norms" else math.sqrt(match)


def chi_mean(n: int) -> float:
    """The expected Euclidean norm of n independent standard normal numbers.

    >>> round(chi_mean(1), 4), round(chi_mean(2), 4)  # (2 / pi)^(1/2), (pi / 2)^(1/2)
    (0.7979, 1.2533)
    """
    return math.sqrt(2) * math.exp(math.lgamma((n + 1) / 2) - math.lgamma(n / 2))
