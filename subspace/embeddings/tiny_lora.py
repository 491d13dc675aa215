"""TinyLoRA (Morris et al., "Learning to reason in 13 parameters", 2026): a few numbers that mix random small matrices.

A product costs that of `LowRank`, and r^2 dim for the mixture. Held are its frames and the matrices, which d and the
key rebuild.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from subspace._base.key import Key
from subspace._base.plug_in import require_key
from subspace.embeddings.base import Embedding
from subspace.embeddings.low_rank import LowRank
from subspace.offsets import Offset


class TinyLoRA(Embedding):
    """U theta = L (sum_i theta_i P_i) M^T, P_i a Gaussian r x r matrix of length 1, L and M as of `LowRank`.

    The columns have length 1, but are not orthogonal; U theta is of rank r at most. With `of`, these are the rows of
    one tensor in a U of that many rows for several tensors, with columns of length (numel / of)^1/2.

    Args:
        like: The weight, or any floating-point tensor of its shape, dtype and device; its values are not kept.
        dim: The length of theta.
        rank: r.
        key: Where the P_i come from, and L and M where there is no offset.
        offset: d, whose first singular vectors L and M are; without one they are random.
        of: The rows of a U that several tensors share; numel of `like` by default.

    Raises:
        ValueError: If dim is outside [1, r^2], or with `of` outside [1, of], or r more than `LowRank` can have.

    >>> U = TinyLoRA(torch.empty(8, 6), 3, rank=2, key=Key(0))
    >>> round(float(U(torch.tensor([0.0, 1.0, 0.0])).norm()), 3)
    1.0
    """

    def __init__(
        self,
        like: Tensor,
        dim: int,
        *,
        rank: int = 2,
        key: Key | None = None,
        offset: Offset | None = None,
        of: int | None = None,
    ) -> None:
        super().__init__(like, dim, key=require_key(key, self), of=of)
        if of is None and dim > rank**2:
            raise ValueError(f"dim must be in [1, {rank**2}], the entries of a matrix of rank {rank}, got {dim}")
        self.rank, self.offset = rank, offset
        self.low_rank = LowRank(like, rank, rank, key=key, offset=offset)
        self.rebuild()

    def label(self) -> str:
        return type(self).__name__ if self.offset is None else f"{type(self).__name__}({self.offset.label()})"

    def rebuild(self) -> None:
        entries = self.rank**2
        drawn = torch.from_numpy(require_key(self.key, self).fold("P").normal(entries * self.dim))
        P = drawn.reshape(self.dim, entries)
        P = P * math.sqrt(self.shape.numel() / self.of) / P.norm(dim=1, keepdim=True)
        self.P = P.to(self.like)

    def forward(self, theta: Tensor) -> Tensor:
        return self.low_rank(self._mixed(theta)).to(theta.dtype)

    def _mixed(self, theta: Tensor) -> Tensor:
        return torch.mv(self.P.T, theta.to(self.P.dtype))

    def adjoint(self, weight: Tensor) -> Tensor:
        entries = self.low_rank.adjoint(weight.to(self.P.dtype))
        return torch.mv(self.P, entries).to(weight.dtype)

    def linear(self, theta: Tensor, x: Tensor) -> Tensor:
        return self.low_rank.linear(self._mixed(theta), x)

    def has_fast_linear(self) -> bool:
        return self.low_rank.has_fast_linear()

    def build_flops(self) -> float:
        return self.low_rank.build_flops() + 2.0 * self.rank**2 * self.dim
