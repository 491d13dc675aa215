"""The coefficients of a weight in Haar's wavelets, as WaveFT has them (Bilican et al. 2025), but at any size."""

from __future__ import annotations

from torch import Tensor

from subspace._base.transforms import haar, ihaar
from subspace.embeddings.separable import Separable
from subspace.products.flops import haar_flops


class Haar(Separable):
    """The orthonormal Haar transform of a matrix in two dimensions, or of every filter along each of its axes.

    Costs O(numel). Of an odd number of averages the last goes on to the next level as it is. Arguments: those of every
    transform along axes (see `Separable`).

    >>> import torch
    >>> Haar(torch.empty(2, 2))(torch.tensor([0.0, 2.0, 0.0, 0.0])).round()
    tensor([[ 1., -1.],
            [ 1., -1.]])
    """

    def transform(self, x: Tensor) -> Tensor:
        return haar(x)

    def inverse(self, c: Tensor) -> Tensor:
        return ihaar(c)

    def length_flops(self, n: int) -> float:
        return haar_flops(n)
