"""A Walsh-Hadamard offset: signs only, a product in O(q log q) additions, q the next power of two."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from subspace._base.dtypes import at_least_float32
from subspace._base.key import Key
from subspace._base.layout import STANDARD, Layout
from subspace._base.matrices import by_rows, parity_signs
from subspace._base.transforms import fwht
from subspace.offsets.base import Offset
from subspace.products.flops import Flops, hadamard_flops
from subspace.products.weight import Structure


class Hadamard(Offset):
    """d = gain * max(n_out, n_in)^-1/2 * H[:n_out, :n_in], H of +-1 in Sylvester's order, of a power of two.

    Every entry has the same magnitude, and |d|_F^2 = gain^2 min(n_in, n_out) as for the DCT; the rows (or columns) are
    orthogonal only where max(n_in, n_out) is a power of two. Patches are ordered as for the DCT.

    Args:
        like: The weight, or any floating-point tensor of its shape, dtype and device; its values are not kept.
        key: Not used.
        gain: Of d.
        layout: How the weight is a matrix.

    >>> Hadamard(torch.empty(2, 4))()
    tensor([[ 0.5000,  0.5000,  0.5000,  0.5000],
            [ 0.5000, -0.5000,  0.5000, -0.5000]])
    """

    def __init__(self, like: Tensor, *, key: Key | None = None, gain: float = 1.0, layout: Layout = STANDARD) -> None:
        super().__init__(like, key=key, layout=layout)
        self.gain = gain

    def forward(self) -> Tensor:
        return self.layout.from_matrix(self.matrix(), self.shape)

    def matrix(self) -> Tensor:
        """d as a matrix: (n_out, n_in)."""
        n_out, n_in = self.fans
        columns = torch.arange(n_in, device=self.like.device)
        matrix = by_rows(n_out, n_in, self.like, lambda rows: parity_signs(rows & columns))
        return matrix.mul_(self.gain / math.sqrt(max(n_out, n_in)))

    def linear(self, x: Tensor) -> Tensor:
        n_out, n_in = self.fans
        larger = max(n_out, n_in)
        q = 1 << (larger - 1).bit_length()
        padded = F.pad(x.to(at_least_float32(x.dtype)), (0, q - n_in))
        return (self.gain * math.sqrt(q / larger) * fwht(padded)[..., :n_out]).to(x.dtype)

    def structure(self) -> Structure | None:
        return Structure("hadamard", self.gain) if self.layout == STANDARD else None

    def flops(self, groups: int = 1, *, alpha: bool = False) -> Flops | None:
        if groups > 1:  # each would need its own transform
            return None
        (m, n), transform = self.fans, hadamard_flops(max(self.fans))
        return Flops(transform + 2 * m, transform + n + m, 2.0 * m * alpha)
