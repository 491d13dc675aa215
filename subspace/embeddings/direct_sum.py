"""Embeddings side by side: U = [U_1, U_2, ...]."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import cast

import torch
from torch import Tensor, nn

from subspace.embeddings.base import Embedding


class DirectSum(Embedding):
    """U theta = U_1 theta_1 + U_2 theta_2 + ..., theta the concatenation of theta_1, theta_2, ...

    Args:
        embeddings: U_1, U_2, ... of one shape. The caller's part: that their ranges meet only in 0.

    Raises:
        ValueError: If the shapes differ, or the dims add up to more than numel.

    >>> from subspace.embeddings import Direction, Sparse
    >>> from subspace.offsets import DCT
    >>> like = torch.empty(1, 4)
    >>> alpha_D_plus_S = DirectSum([Direction(DCT(like)), Sparse(like, index=torch.tensor([2]))])
    >>> alpha_D_plus_S(torch.tensor([1.0, 5.0]))
    tensor([[0.5000, 0.5000, 5.5000, 0.5000]])
    """

    def __init__(self, embeddings: Sequence[Embedding]) -> None:
        shapes = {tuple(embedding.shape) for embedding in embeddings}
        if len(shapes) != 1:
            raise ValueError(f"embeddings must have one shape, got {sorted(shapes)}")
        first = embeddings[0]
        super().__init__(first.like.new_empty(()).expand(first.shape), sum(e.dim for e in embeddings))
        self.embeddings = nn.ModuleList(embeddings)

    def label(self) -> str:
        return " + ".join(embedding.label() for embedding in self.embeddings)  # type: ignore[operator]

    def parts(self) -> list[Embedding]:
        return [part for embedding in self.embeddings for part in cast(Embedding, embedding).parts()]

    def _split(self, theta: Tensor) -> list[tuple[Embedding, Tensor]]:
        parts = self.parts()
        return list(zip(parts, theta.split([part.dim for part in parts]), strict=True))  # type: ignore[no-untyped-call]

    def forward(self, theta: Tensor) -> Tensor:
        return reduce(torch.add, [U(part) for U, part in self._split(theta)])

    def adjoint(self, weight: Tensor) -> Tensor:
        return torch.cat([U.adjoint(weight) for U in self.parts()])

    def linear(self, theta: Tensor, x: Tensor) -> Tensor:
        return reduce(torch.add, [U.linear(part, x) for U, part in self._split(theta)])

    def linear_each(self, thetas: Tensor, x: Tensor) -> Tensor:
        parts = self.parts()
        split = thetas.split([U.dim for U in parts], -1)  # type: ignore[no-untyped-call]
        return reduce(torch.add, [U.linear_each(part, x) for U, part in zip(parts, split, strict=True)])

    def alphas(self) -> int:
        return sum(U.alphas() for U in self.parts())

    def has_fast_linear(self) -> bool:
        return all(U.has_fast_linear() for U in self.parts())
