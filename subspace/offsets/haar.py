"""The Haar transform as offset: averages of all inputs, and of ever fewer; a product in O(max(n_out, n_in))."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from subspace._base.dtypes import at_least_float32
from subspace._base.key import Key
from subspace._base.layout import STANDARD, Layout
from subspace._base.transforms import haar
from subspace.offsets.by_product import ByProduct
from subspace.products.flops import Flops, haar_flops


class Haar(ByProduct):
    """d = gain * H[:n_out, :n_in], H the orthonormal Haar transform of length max(n_out, n_in), coarsest level first.

    An average that is left over on a level goes on to the next as it is, so that H is orthogonal for any length; d is
    semi-orthogonal, and |d|_F^2 = gain^2 min(n_in, n_out) as for the DCT. Patches are ordered as for the DCT.

    Args:
        like: The weight, or any floating-point tensor of its shape, dtype and device; its values are not kept.
        key: Not used.
        gain: Of d.
        layout: How the weight is a matrix.

    >>> import torch
    >>> Haar(torch.empty(3, 4))()
    tensor([[ 0.5000,  0.5000,  0.5000,  0.5000],
            [ 0.5000,  0.5000, -0.5000, -0.5000],
            [ 0.7071, -0.7071,  0.0000,  0.0000]])
    """

    def __init__(self, like: Tensor, *, key: Key | None = None, gain: float = 1.0, layout: Layout = STANDARD) -> None:
        super().__init__(like, key=key, layout=layout)
        self.gain = gain

    def linear(self, x: Tensor) -> Tensor:
        n_out, n_in = self.fans
        padded = F.pad(x.to(at_least_float32(x.dtype)), (0, max(n_out, n_in) - n_in))
        return (self.gain * haar(padded)[..., :n_out]).to(x.dtype)

    def flops(self, groups: int = 1, *, alpha: bool = False) -> Flops | None:
        if groups > 1:  # each would need its own transform
            return None
        (m, n), transform = self.fans, haar_flops(max(self.fans))
        return Flops(transform + m + m * alpha, transform + n + m * alpha, 2.0 * m * alpha)
