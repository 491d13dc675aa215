"""A Walsh-Hadamard offset: signs only, a product in O(q log q) additions, q the next power of two."""

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
from subspace.transforms import fwht


class Hadamard(Offset):
    """d = gain * max(n_out, n_in)^-1/2 * H[:n_out, :n_in], H of +-1 in Sylvester's order, of a power of two.

    Every entry has the same magnitude, and |d|_F^2 = gain^2 min(n_in, n_out) as for the DCT; the rows (or columns) are
    orthogonal only where max(n_in, n_out) is a power of two. Patches are ordered as for the DCT.

    >>> Hadamard(torch.empty(2, 4))()
    tensor([[ 0.5000,  0.5000,  0.5000,  0.5000],
            [ 0.5000, -0.5000,  0.5000, -0.5000]])
    """

    def __init__(self, like: Tensor, *, key: Key | None = None, gain: float = 1.0) -> None:
        super().__init__(like, key=key)
        self.gain = gain

    def forward(self) -> Tensor:
        n_out, n_in = fans(self.shape)
        columns = torch.arange(n_in, device=self.like.device)
        matrix = by_rows(n_out, n_in, self.like, lambda rows: _signs(rows & columns))
        return from_matrix(matrix.mul_(self.gain / math.sqrt(max(n_out, n_in))), self.shape)

    def linear(self, x: Tensor) -> Tensor:
        n_out, n_in = fans(self.shape)
        larger = max(n_out, n_in)
        q = 1 << (larger - 1).bit_length()
        padded = F.pad(x.to(wide(x.dtype)), (0, q - n_in))
        return (self.gain * math.sqrt(q / larger) * fwht(padded)[..., :n_out]).to(x.dtype)


def _signs(common: Tensor) -> Tensor:
    """(-1)^(number of bits set)."""
    for shift in (32, 16, 8, 4, 2, 1):
        common = common ^ (common >> shift)
    return 1 - 2 * (common & 1)
