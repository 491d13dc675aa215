"""A subspace that is given: of the first principal directions of a trajectory, the lottery subspace (Larsen et al.,
"How many degrees of freedom do we need to train deep networks: a loss landscape perspective", ICLR 2022).

O(numel dim) memory and time, as no key rebuilds it: the matrix is held, and is in every checkpoint.
"""

from __future__ import annotations

import torch
from torch import Tensor

from subspace._base.frames import orthonormalized
from subspace.embeddings.base import Embedding


class Given(Embedding):
    """U = an orthonormal basis of the columns of a matrix, in their order; U^T U = I.

    It keeps its values whatever becomes of the module's: on the meta device, and through `to_empty`.

    Args:
        like: The weight, or any floating-point tensor of its shape, dtype and device; its values are not kept.
        matrix: (numel, dim), finite, of independent columns. Those that are orthonormal already stay as they are.
        of: The rows of a U that several tensors share, of which `matrix` has those of one, as they stay; its columns
            are then no longer than 1. By default numel of `like`.

    Raises:
        ValueError: If it is not that.

    >>> U = Given(torch.empty(2, 2), torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]))
    >>> U(torch.tensor([0.0, 2.0]))
    tensor([[ 1.4142, -1.4142],
            [ 0.0000,  0.0000]])
    """

    given = ("matrix",)

    def __init__(self, like: Tensor, matrix: Tensor, *, of: int | None = None) -> None:
        if matrix.ndim != 2 or matrix.shape[0] != like.numel():
            raise ValueError(f"matrix must have shape ({like.numel()}, dim), got {tuple(matrix.shape)}")
        super().__init__(like, matrix.shape[1], of=of)
        device = "cpu" if like.is_meta else like.device
        rows = matrix.detach()
        fitting = (_orthonormal(rows) if self.of == like.numel() else _of_orthonormal(rows)).to(
            device, self.like.dtype, copy=True
        )
        self.matrix = fitting.contiguous()  # products are rounded as the memory lies

    def forward(self, theta: Tensor) -> Tensor:
        return torch.mv(self.matrix.to(theta.dtype), theta).reshape(self.shape)

    def adjoint(self, weight: Tensor) -> Tensor:
        return torch.mv(self.matrix.T.to(weight.dtype), weight.reshape(-1))

    def coordinates(self, weight: Tensor) -> Tensor:
        return self.adjoint(weight) if self.of == self.shape.numel() else super().coordinates(weight)


def _of_orthonormal(rows: Tensor) -> Tensor:
    lengths = rows.double().square().sum(0)
    if not bool((lengths <= 1 + 64 * torch.finfo(rows.dtype).eps).all()):
        raise ValueError(f"matrix must be rows of orthonormal columns, got one of length {lengths.max().sqrt():g}")
    return rows


def _orthonormal(matrix: Tensor) -> Tensor:
    wide, eps = matrix.double(), torch.finfo(matrix.dtype).eps
    if not bool(wide.isfinite().all()):
        raise ValueError(f"matrix must be finite, got {int((~wide.isfinite()).sum())} entries that are not")
    products = wide.T @ wide
    rounding = 2 * eps + 8 * len(wide) * torch.finfo(wide.dtype).eps  # of the entries, and of their products
    if bool(((products - torch.eye(len(products)).to(wide)).abs() < rounding).all()):
        return matrix
    if (rank := int(torch.linalg.matrix_rank(wide, rtol=eps * max(wide.shape)))) < wide.shape[1]:
        raise ValueError(f"matrix must have {wide.shape[1]} independent columns, got {rank}")
    return orthonormalized(wide)
