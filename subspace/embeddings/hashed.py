"""Shared weights (Chen et al., "Compressing neural networks with the hashing trick", ICML 2015): a count sketch.

One +-1 in every row of U, up to scale, where `Sparse` has one in every column. Also the map of Uni-LoRA (Li et al.,
"Uni-LoRA: one vector is all you need", 2025). U theta costs one gather, O(numel), the least of any dense U, and no
product can do with less than the weight that it makes. Held are a place and a sign for each weight, 5 bytes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from subspace._base.balanced import balanced
from subspace._base.dtypes import at_least_float32
from subspace._base.key import Key
from subspace._base.plug_in import require_key
from subspace.embeddings.base import Embedding


class Hashed(Embedding):
    """(U theta)[i] = (dim / of)^1/2 s[i] theta[h[i]], s of random signs, h balanced: each theta_j as often as any, +-1.

    The columns are exactly orthogonal, and all of length 1 where dim divides numel; in general of length
    (c_j dim / of)^1/2, theta_j being at c_j places, numel / dim rounded up or down. Those rounded up are at random.

    With `of`, these are the rows of one tensor in a U of that many rows for several tensors, injective where one of
    them has dim weights or more.

    Args:
        like: The weight, or any floating-point tensor of its shape, dtype and device; its values are not kept.
        dim: The length of theta.
        key: Where places and signs come from.
        of: The rows of a U that several tensors share; numel of `like` by default.

    Raises:
        ValueError: If dim is outside [1, of].

    >>> U = Hashed(torch.empty(8, 3), 6, key=Key(0))
    >>> torch.allclose(U.adjoint(U(torch.arange(6.0))), torch.arange(6.0))
    True
    """

    def __init__(self, like: Tensor, dim: int, *, key: Key | None = None, of: int | None = None) -> None:
        super().__init__(like, dim, key=require_key(key, self), of=of)
        self.gain = math.sqrt(self.dim / self.of)
        self.rebuild()

    def rebuild(self) -> None:
        key, n, device = require_key(self.key, self), self.shape.numel(), self.like.device
        if device.type == "meta":
            places, signs = torch.empty(n, dtype=torch.int64), torch.empty(n, dtype=torch.int8)
        else:
            places, signs = (torch.from_numpy(t) for t in (balanced(key, n, self.dim), key.fold("signs").signs(n)))
        self.places, self.signs = places.int().to(device), signs.to(device)

    def forward(self, theta: Tensor) -> Tensor:
        scaled = self.gain * theta.to(at_least_float32(theta.dtype))
        return (scaled.index_select(0, self.places) * self.signs).to(theta.dtype).reshape(self.shape)

    def adjoint(self, weight: Tensor) -> Tensor:
        flat = weight.reshape(-1).to(at_least_float32(weight.dtype))
        sums = flat.new_zeros(self.dim).index_add(0, self.places, flat * self.signs)
        return (self.gain * sums).to(weight.dtype)

    def coordinates(self, weight: Tensor) -> Tensor:
        counts = torch.bincount(self.places, minlength=self.dim).clamp(min=1)
        wide = self.adjoint(weight.to(at_least_float32(weight.dtype)))
        return (wide / (counts * self.gain**2)).to(weight.dtype)

    def build_flops(self) -> float:
        return self.shape.numel() + self.dim
