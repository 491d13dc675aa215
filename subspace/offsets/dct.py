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

from subspace._base.dtypes import at_least_float32
from subspace._base.key import Key
from subspace._base.layout import STANDARD, Layout
from subspace._base.matrices import by_rows
from subspace._base.transforms import dct
from subspace._base.waves import waves
from subspace.offsets.base import Offset
from subspace.products.flops import Flops, dct_flops
from subspace.products.weight import Structure


class DCT(Offset):
    """d = gain * D, D the truncated orthonormal DCT-II.

    Args:
        like: The weight, or any floating-point tensor of its shape, dtype and device; its values are not kept.
        key: Not used.
        gain: Of d.
        layout: How the weight is a matrix.

    >>> D = DCT(torch.empty(2, 8))()
    >>> torch.allclose(D @ D.T, torch.eye(2), atol=1e-6)
    True
    """

    def __init__(self, like: Tensor, *, key: Key | None = None, gain: float = 1.0, layout: Layout = STANDARD) -> None:
        super().__init__(like, key=key, layout=layout)
        self.gain = gain

    def forward(self) -> Tensor:
        return self.layout.from_matrix(self.matrix(), self.shape)

    def matrix(self) -> Tensor:
        """d as a matrix: (n_out, n_in)."""
        n_out, n_in = self.fans
        q, device = max(n_out, n_in), self.like.device
        cosines = waves(4 * q, 4 * q, self.gain * math.sqrt(2 / q), self.like.dtype, device)[0]
        odd = 2 * torch.arange(n_in, device=device) + 1
        matrix = by_rows(n_out, n_in, self.like, lambda i: cosines[i * odd % (4 * q)])  # whole turns dropped exactly
        matrix[0] = self.gain / math.sqrt(q)
        return matrix

    def linear(self, x: Tensor) -> Tensor:
        n_out, n_in = self.fans
        padded = F.pad(x.to(at_least_float32(x.dtype)), (0, max(n_out, n_in) - n_in))
        return (self.gain * dct(padded)[..., :n_out]).to(x.dtype)

    def structure(self) -> Structure | None:
        return Structure("dct", self.gain) if self.layout == STANDARD else None

    def flops(self, groups: int = 1, *, alpha: bool = False) -> Flops | None:
        if groups > 1:  # each would need its own transform
            return None
        (m, n), transform = self.fans, dct_flops(max(self.fans))
        return Flops(transform + m + m * alpha, transform + n + m * alpha, 2.0 * m * alpha)
