"""The coefficients of a weight in cosines, as generalised lottery tickets have them (Alabdulmohsin et al. 2021)."""

from __future__ import annotations

from torch import Tensor

from subspace._base.transforms import dct, idct
from subspace.embeddings.separable import Separable
from subspace.products.flops import dct_flops


class DCT(Separable):
    """The orthonormal DCT-II of a matrix in two dimensions, or of every filter along each of its axes.

    Costs O(numel log numel). Arguments: those of every transform along axes (see `Separable`).

    >>> import torch
    >>> DCT(torch.empty(2, 2))(torch.tensor([2.0, 0.0, 0.0, 0.0])).round()
    tensor([[1., 1.],
            [1., 1.]])
    """

    def transform(self, x: Tensor) -> Tensor:
        return dct(x)

    def inverse(self, c: Tensor) -> Tensor:
        return idct(c)

    def length_flops(self, n: int) -> float:
        return dct_flops(n)
