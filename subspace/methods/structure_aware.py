"""SAID, structure-aware intrinsic dimension (Aghajanyan, Gupta and Zettlemoyer, "Intrinsic dimensionality explains the
effectiveness of language model fine-tuning", ACL 2021): w_i = d_i + lambda_i U_i theta, theta one for all tensors.

With every lambda fixed at 1 this is d + U theta, which the paper calls DID (direct intrinsic dimension): `tune.srht`.
lambda times theta is bilinear and outside that law: here U_i theta is a subspace, and lambda and d another of torch's
parametrizations on top of it. `subspace.summary` counts lambda beside theta, and `subspace.save` takes it along, but a
plain model has no place to load it into.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from subspace._base.dtypes import at_least_float32
from subspace._base.qualified import owner_of
from subspace._base.selection import Selection, targets
from subspace.embeddings import SRHT, Embedding
from subspace.methods.budgets import entries
from subspace.methods.recipe import Start, register_sharing, rows_of_one, zeros
from subspace.offsets import Offset, Pretrained, Zero


class ScaledUpdate(nn.Module):
    """A parametrization of torch's on top of another one: u -> d + lambda u, lambda a trained number from 1.

    Args:
        offset: d.
    """

    def __init__(self, offset: Offset) -> None:
        super().__init__()
        self.offset = offset
        dtype = at_least_float32(offset.like.dtype)
        self.scale = nn.Parameter(torch.ones((), dtype=dtype, device=offset.like.device))

    def forward(self, update: Tensor) -> Tensor:
        return (self.offset() + self.scale * update).to(update.dtype)


def said(
    model: nn.Module,
    *,
    density: float | None = None,
    dim: int | None = None,
    seed: int = 0,
    embedding: Callable[..., Embedding] = SRHT,
    include: Selection | None = None,
    exclude: Selection | None = None,
) -> nn.Module:
    """SAID: one theta for all tensors from the present weights, and a factor of its part for each tensor.

    Args:
        model: Its tensors are registered in place. What else trains stays as it is.
        density: The numbers of theta and the factors as a fraction in (0, 1] of the chosen weights; or give dim.
        dim: How many numbers they have: one factor for each tensor (in the paper for each layer), and the rest theta.
        seed: Of U, folded with each tensor's qualified name.
        embedding: embedding(weight, dim, key=key, of=n) -> the rows of one tensor in the global U of n rows, as
            `embeddings.SRHT` and `embeddings.Hashed`.
        include: Which tensors, as of `targets`; the paper has all of them, lambda name, tensor: True.
        exclude: Which tensors not, as of `targets`.

    Returns:
        The model, whose output is at first that of the base to the bit.

    Raises:
        TypeError: If not exactly one of density and dim is given, or the embedding takes no key and of.
        ValueError: If dim leaves nothing for theta, and as `targets`; the model is then as it was.

    >>> net = said(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 2)), dim=50)
    >>> len(net[0].parametrizations.weight.original), net[0].parametrizations.weight[1].scale.item()
    (48, 1.0)
    """
    weights = {name: target.weight for name, target in targets(model, include, exclude).items()}
    total = entries(sum(w.numel() for w in weights.values()), density, dim)
    if total <= len(weights):
        raise ValueError(f"dim must be above {len(weights)}, a factor for each tensor and a theta, got {total}")
    parts = rows_of_one(embedding, weights, total - len(weights), seed)
    starts: dict[str, Start] = {name: (Zero(w), parts[name], zeros(w, parts[name].dim)) for name, w in weights.items()}
    scales = {name: ScaledUpdate(Pretrained(w)) for name, w in weights.items()}
    register_sharing(model, [starts])
    for name, scale in scales.items():
        parametrize.register_parametrization(*owner_of(model, name), scale)
    return model
