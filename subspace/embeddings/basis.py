"""Sparse coefficients in an orthonormal basis: generalised lottery tickets (Alabdulmohsin et al. 2021).

A new basis is a file of one class with `analyse` and `synthesise`, or of a `Separable` one.
"""

from __future__ import annotations

import abc
import inspect
from collections.abc import Callable

from torch import Tensor

from subspace._base.dtypes import at_least_float32
from subspace._base.key import Key
from subspace._base.layout import STANDARD, Layout
from subspace.embeddings.base import Embedding
from subspace.embeddings.sparse import Sparse
from subspace.products.flops import Flops

OUTPUTS, INPUTS = 0, 1  # the axes of the matrix


class Transform(Embedding):
    """W = A^T C B, A and B orthonormal, theta = the coefficients C = A W B^T; dim = numel, U^T U = I.

    Each of several matrices in a tensor has coefficients of its own. C has the weight's shape, and its matrix the order
    of the DCT's patches. Two methods make it complete: A and B along the outputs and the inputs.
    """

    def __init__(self, like: Tensor, *, key: Key | None = None, layout: Layout = STANDARD) -> None:
        super().__init__(like, like.numel(), key=key, layout=layout)

    def in_layout(self, layout: Layout) -> Transform:
        """The same for a weight that is such a matrix, or several; itself if it was made for another, or takes none."""
        ours = self.layout != STANDARD or "layout" not in inspect.signature(type(self)).parameters
        if layout == STANDARD or ours:
            return self
        options = {name: value for name, value in self.describe().items() if name != "class"}
        return type(self)(self.like.new_empty(()).expand(self.shape), **options, layout=layout)

    @abc.abstractmethod
    def analyse(self, x: Tensor, axis: int) -> Tensor:
        """A x along the last axis for axis 0, the outputs; B x for axis 1, the inputs."""

    @abc.abstractmethod
    def synthesise(self, c: Tensor, axis: int) -> Tensor:
        """A^T c or B^T c along the last axis."""

    @abc.abstractmethod
    def axis_flops(self, axis: int) -> float:
        """The FLOPs of `analyse` for one row of that axis."""

    def forward(self, theta: Tensor) -> Tensor:
        return self._both(theta.reshape(self.shape), self.synthesise)

    def adjoint(self, weight: Tensor) -> Tensor:
        return self._both(weight, self.analyse).reshape(-1)

    def coordinates(self, weight: Tensor) -> Tensor:
        return self.adjoint(weight)

    def _both(self, weight: Tensor, along: Callable[[Tensor, int], Tensor]) -> Tensor:
        matrix = self.layout.to_matrix(weight).to(at_least_float32(weight.dtype))
        turned = along(along(matrix, INPUTS).mT, OUTPUTS).mT
        return self.layout.from_matrix(turned, self.shape).to(weight.dtype)

    def around(self, x: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
        """x W^T = A^T (C B x), by a product with C alone: (..., n_in) -> (..., matrices n_out)."""
        wide = x.to(at_least_float32(x.dtype))
        inner = product(self.analyse(wide, INPUTS))
        each = inner.reshape(*inner.shape[:-1], self.matrices, self.fans[0])
        return self.synthesise(each, OUTPUTS).flatten(-2).to(x.dtype)

    def columns(self, kept: Tensor) -> Embedding:
        return Basis(self, Sparse(self.like.new_empty(()).expand(self.shape), index=kept))

    def build_flops(self) -> float:
        n_out, n_in = self.fans
        return self.matrices * (n_out * self.axis_flops(INPUTS) + n_in * self.axis_flops(OUTPUTS))


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

    pace = 16.0

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
        super().__init__(sparse.like.new_empty(()).expand(sparse.shape), sparse.dim, layout=transform.layout)
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
        if self.layout[:3] != STANDARD[:3]:
            return super().linear(theta, x)
        wide = theta.to(at_least_float32(theta.dtype))
        return self.transform.around(x, lambda z: self.sparse.linear(wide, z))

    def columns(self, kept: Tensor) -> Embedding:
        return Basis(self.transform, self.sparse.columns(kept))

    def flops(self, groups: int = 1) -> Flops | None:
        if groups > 1:  # each would need its own transform
            return None
        of_inputs, of_outputs = (self.transform.axis_flops(axis) for axis in (INPUTS, OUTPUTS))
        of_outputs *= self.transform.matrices
        entries = 2.0 * self.dim
        return Flops(of_inputs + entries + of_outputs, entries + of_inputs, entries + of_outputs)

    def build_flops(self) -> float:
        return self.transform.build_flops()
