"""Sparse coefficients in a basis: tickets beyond sparse weights (Alabdulmohsin et al. 2021, arXiv 2107.06825)."""

from __future__ import annotations

from torch import Tensor

from subspace._base.dtypes import at_least_float32
from subspace.embeddings.base import Embedding
from subspace.embeddings.transform import INPUTS, OUTPUTS, Transform
from subspace.products.flops import Flops


class Basis(Embedding):
    """U theta = B S theta: the coefficients of an orthonormal basis B that are not zero are theta; U^T U = I.

    A product is one of a sparse matrix between transforms of the inputs and of the outputs. With `Identity` for B it is
    `Sparse` itself. Held is what B and S hold.

    Args:
        transform: B.
        sparse: S, which coefficients.

    Raises:
        TypeError: If the first is no `Transform`, or the second not sparse.
        ValueError: If they are of two shapes.

    >>> import torch
    >>> from subspace.embeddings import DCT, Sparse
    >>> like = torch.empty(2, 2)
    >>> Basis(DCT(like), Sparse(like, index=torch.tensor([1])))(torch.tensor([2.0])).round()
    tensor([[ 1., -1.],
            [ 1., -1.]])
    """

    def __init__(self, transform: Transform, sparse: Embedding) -> None:
        if not isinstance(transform, Transform):
            raise TypeError(f"transform must be a Transform, got {type(transform).__name__}")
        if sparse.support() is None:
            raise TypeError(f"sparse must be a Sparse embedding, got {sparse.label()}")
        if transform.shape != sparse.shape:
            raise ValueError(
                f"transform and sparse must have one shape, got {tuple(transform.shape)} and {tuple(sparse.shape)}"
            )
        self.least_dim = sparse.least_dim
        super().__init__(sparse.like.new_empty(()).expand(sparse.shape), sparse.dim)
        self.transform, self.sparse = transform, sparse

    def forward(self, theta: Tensor) -> Tensor:
        return self.transform(self.sparse(theta).reshape(-1))

    def adjoint(self, weight: Tensor) -> Tensor:
        return self.sparse.adjoint(self.transform.adjoint(weight).reshape(self.shape))

    coordinates = adjoint

    def sparse_part(self) -> Embedding | None:
        return self.sparse.sparse_part()

    def coefficients(self, weight: Tensor) -> Tensor:
        return self.transform.adjoint(weight)

    def linear(self, theta: Tensor, x: Tensor) -> Tensor:
        wide = theta.to(at_least_float32(theta.dtype))
        return self.transform.around(x, lambda z: self.sparse.linear(wide, z))

    def flops(self, groups: int = 1) -> Flops | None:
        if groups > 1:  # each would need its own transform
            return None
        of_inputs, of_outputs = (self.transform.axis_flops(axis) for axis in (INPUTS, OUTPUTS))
        entries = 2.0 * self.dim
        return Flops(of_inputs + entries + of_outputs, entries + of_inputs, entries + of_outputs)

    def build_flops(self) -> float:
        return self.transform.build_flops()
