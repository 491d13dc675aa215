"""An embedding with its columns rescaled."""

from __future__ import annotations

from torch import Tensor

from subspace.embeddings.base import Embedding


class Scaled(Embedding):
    """U diag(scale).

    Args:
        embedding: U.
        scale: (dim,), finite and nowhere zero.

    Raises:
        ValueError: If the scale is not that.

    >>> import torch
    >>> from subspace.embeddings import Identity
    >>> Scaled(Identity(torch.empty(2)), torch.tensor([2.0, 3.0]))(torch.ones(2))
    tensor([2., 3.])
    """

    scale: Tensor
    given = ("scale",)

    def __init__(self, embedding: Embedding, scale: Tensor) -> None:
        super().__init__(embedding.like.new_empty(()).expand(embedding.shape), embedding.dim, of=embedding.of)
        if scale.shape != (self.dim,):
            raise ValueError(f"scale must have shape ({self.dim},), got {tuple(scale.shape)}")
        if not bool((scale.isfinite() & (scale != 0)).all()):
            raise ValueError("scale must be finite and nowhere zero, got entries that are not")
        self.embedding = embedding
        self.scale = scale

    def forward(self, theta: Tensor) -> Tensor:
        return self.embedding(self.scale.to(theta.dtype) * theta)

    def adjoint(self, weight: Tensor) -> Tensor:
        return self.scale.to(weight.dtype) * self.embedding.adjoint(weight)

    def coordinates(self, weight: Tensor) -> Tensor:
        return self.embedding.coordinates(weight) / self.scale.to(weight.dtype)

    def linear(self, theta: Tensor, x: Tensor) -> Tensor:
        return self.embedding.linear(self.scale.to(theta.dtype) * theta, x)

    def linear_each(self, thetas: Tensor, x: Tensor) -> Tensor:
        return self.embedding.linear_each(self.scale * thetas, x)

    def has_fast_linear(self) -> bool:
        return self.embedding.has_fast_linear()

    def alphas(self) -> int:
        return self.embedding.alphas()

    def build_flops(self) -> float:
        return self.embedding.build_flops()
