"""Kronecker products of a fixed random factor and one that is trained: the structured part of doping that is linear.

Thakker et al. ("Doping: a technique for extreme compression of LSTM models using sparse structured additive matrices",
MLSys 2021) train both factors, which is bilinear: `methods.dope`. A product costs O(n_in p + dim p) a row of inputs,
for a fixed factor of p rows, and never builds the weight. Held is the fixed factor, which the key rebuilds.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from subspace._base.dtypes import at_least_float32
from subspace._base.key import Key
from subspace._base.layout import STANDARD, Layout
from subspace._base.plug_in import require_key
from subspace.embeddings.base import Embedding
from subspace.products.flops import Flops


class Kronecker(Embedding):
    """U theta = B (x) C, theta the entries of B row by row, C normal numbers scaled to Frobenius norm 1: U^T U = I.

    The block of the weight's matrix at (i, j) is B[i, j] C; its rank is the product of the factors' ranks. Patches are
    ordered as for the DCT.

    Args:
        like: The weight, or any floating-point tensor of its shape, dtype and device; its values are not kept.
        height: The rows of B, which divide the number of outputs.
        width: The columns of B, which divide the number of inputs.
        key: Where C comes from.
        layout: How the weight is a matrix; each of several has its own B, and all have the same C.

    Raises:
        ValueError: If height or width do not divide.

    >>> U = Kronecker(torch.empty(6, 8), 3, 2, key=Key(0))
    >>> U.dim, U.C.shape, torch.allclose(U(torch.arange(6.0))[2:4, 4:], 3 * U.C)
    (6, torch.Size([2, 4]), True)
    """

    def __init__(
        self, like: Tensor, height: int, width: int, *, key: Key | None = None, layout: Layout = STANDARD
    ) -> None:
        matrices = Layout(*layout)
        n_out, n_in = matrices.fans(like.shape)
        if height < 1 or width < 1 or n_out % height or n_in % width:
            raise ValueError(
                f"height and width must divide {n_out} outputs and {n_in} inputs, got {height} and {width}"
            )
        dim = matrices.matrices(like.shape) * height * width
        super().__init__(like, dim, key=require_key(key, self), layout=layout)
        self.height, self.width = height, width
        self.rebuild()

    def rebuild(self) -> None:
        (n_out, n_in), key = self.fans, require_key(self.key, self)
        shape = n_out // self.height, n_in // self.width
        if self.like.is_meta:
            C = torch.empty(shape, device="meta")
        else:
            C = torch.from_numpy(key.normal(math.prod(shape))).reshape(shape)
            C = C / C.norm()
        self.C = C.to(self.like.device, at_least_float32(self.like.dtype))

    def _factor(self, theta: Tensor) -> Tensor:
        """(matrices, height, width)."""
        return theta.to(at_least_float32(theta.dtype)).reshape(self.matrices, self.height, self.width)

    def forward(self, theta: Tensor) -> Tensor:
        blocks = self._factor(theta)[:, :, None, :, None] * self.C[:, None, :]
        matrix = blocks.reshape(self.matrices, *self.fans)
        return self.layout.from_matrix(matrix, self.shape).to(theta.dtype)

    def adjoint(self, weight: Tensor) -> Tensor:
        wide = self.layout.to_matrix(weight).to(at_least_float32(weight.dtype))
        blocks = wide.reshape(self.matrices, self.height, self.C.shape[0], self.width, self.C.shape[1])
        return torch.einsum("bipjq,pq->bij", blocks, self.C.to(wide.dtype)).reshape(-1).to(weight.dtype)

    coordinates = adjoint

    def linear(self, theta: Tensor, x: Tensor) -> Tensor:
        if self.matrices > 1:
            return super().linear(theta, x)
        B = self._factor(theta)[0]
        parts = x.to(B.dtype).reshape(*x.shape[:-1], self.width, self.C.shape[1])
        return (B @ (parts @ self.C.mT)).flatten(-2).to(x.dtype)

    def has_fast_linear(self) -> bool:
        return self.matrices == 1 and sum(self._products()) < self.shape.numel()

    def _products(self) -> tuple[int, int]:
        """The multiplications of a row of inputs with C, and of what becomes of it with B."""
        p, q = self.C.shape
        return self.width * q * p, self.height * self.width * p

    def flops(self, groups: int = 1) -> Flops | None:
        if groups > 1 or not self.has_fast_linear():
            return None
        of_C, of_B = (2.0 * count for count in self._products())
        return Flops(of_C + of_B, of_B + of_C, of_C + of_B)

    def build_flops(self) -> float:
        return self.shape.numel()
