"""The coefficients of a weight in Walsh functions, +-1 up to scale."""

from __future__ import annotations

from torch import Tensor

from subspace._base.transforms import block_fwht
from subspace.embeddings.separable import Separable
from subspace.products.flops import block_hadamard_flops


class Hadamard(Separable):
    """The orthonormal Walsh-Hadamard transform of a matrix in two dimensions, or of every filter along each axis.

    Costs O(numel log numel) additions. An axis whose length is no power of two is cut into pieces of the binary digits
    of its length, the largest first: 11 is 8 + 2 + 1. Arguments: those of every transform along axes (see `Separable`).

    >>> import torch
    >>> Hadamard(torch.empty(2, 2))(torch.tensor([0.0, 2.0, 0.0, 0.0]))
    tensor([[ 1., -1.],
            [ 1., -1.]])
    """

    def transform(self, x: Tensor) -> Tensor:
        return block_fwht(x)

    def inverse(self, c: Tensor) -> Tensor:
        return block_fwht(c)

    def length_flops(self, n: int) -> float:
        return block_hadamard_flops(n)
