"""U = identity: ordinary training."""

from __future__ import annotations

from torch import Tensor

from subspace.embeddings.base import Embedding
from subspace.embeddings.basis import Transform
from subspace.embeddings.sparse import Sparse
from subspace.products.flops import Flops


class Identity(Transform):
    """U theta = theta in the weight's shape; dim = numel.

    Args:
        like: The weight, or any floating-point tensor of its shape, dtype and device; its values are not kept.
        key: Not used.

    >>> import torch
    >>> Identity(torch.empty(2, 2))(torch.arange(4.0))
    tensor([[0., 1.],
            [2., 3.]])
    """

    def forward(self, theta: Tensor) -> Tensor:
        return theta.reshape(self.shape)

    def adjoint(self, weight: Tensor) -> Tensor:
        return weight.reshape(-1)

    coordinates = adjoint

    def analyse(self, x: Tensor, axis: int) -> Tensor:
        return x

    def synthesise(self, c: Tensor, axis: int) -> Tensor:
        return c

    def axis_flops(self, axis: int) -> float:
        return 0.0

    def columns(self, kept: Tensor) -> Embedding:
        return Sparse(self.like.new_empty(()).expand(self.shape), index=kept)

    def keeps_entries(self) -> bool:
        return True

    def flops(self, groups: int = 1) -> Flops:
        dense = 2.0 * self.dim
        return Flops(dense, dense, dense)

    def build_flops(self) -> float:
        return self.dim
