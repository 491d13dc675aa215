"""The DCT offset of DCTpS (Price and Tanner, "Dense for the price of sparse", ICML 2021).

With q = max(n_in, n_out) and F the q x q matrix with F[i, k] = c_k cos(pi (2i + 1) k / 2q), c_0 = (1/q)^1/2, else
c_k = (2/q)^1/2, D = F[:n_in, :n_out]^T: zero-pad x to q, orthonormal DCT-II, keep the first n_out coefficients. D is
semi-orthogonal: all its singular values are 1 and |D|_F^2 = min(n_in, n_out). A convolution's patches are ordered with
the channel fastest; groups make n_in = C_in / groups * taps smaller than n_out = C_out, as the weight's shape says.

A product costs O(q log q) a row; building d costs O(n_in n_out), its entries exact to half a unit in the last place.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from subspace.fixed import wide
from subspace.offsets.base import Offset
from subspace.patches import fans, from_matrix
from subspace.random import Key
from subspace.rows import by_rows
from subspace.transforms import dct


class DCT(Offset):
    """d = gain * D, D the truncated orthonormal DCT-II.

    >>> D = DCT(torch.empty(2, 8))()
    >>> torch.allclose(D @ D.T, torch.eye(2), atol=1e-6)
    True
    """

    def __init__(self, like: Tensor, *, key: Key | None = None, gain: float = 1.0) -> None:
        super().__init__(like, key=key)
        self.gain = gain

    def forward(self) -> Tensor:
        n_out, n_in = fans(self.shape)
        q, device = max(n_out, n_in), self.like.device
        angle = torch.arange(4 * q, dtype=torch.float64, device=device) * (math.pi / (2 * q))
        waves = (self.gain * math.sqrt(2 / q) * angle.cos()).to(self.like.dtype)
        waves[q :: 2 * q] = 0  # where a rounded pi / 2 has a cosine of 6e-17
        odd = 2 * torch.arange(n_in, device=device) + 1
        matrix = by_rows(n_out, n_in, self.like, lambda i: waves[i * odd % (4 * q)])  # whole turns dropped exactly
        matrix[0] = self.gain / math.sqrt(q)
        return from_matrix(matrix, self.shape)

    def linear(self, x: Tensor) -> Tensor:
        n_out, n_in = fans(self.shape)
        padded = F.pad(x.to(wide(x.dtype)), (0, max(n_out, n_in) - n_in))
        return (self.gain * dct(padded)[..., :n_out]).to(x.dtype)
