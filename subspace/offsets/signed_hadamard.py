"""The Walsh-Hadamard offset at inputs whose channels have random signs: without a favourite, as `SignedDCT`.

The randomised Hadamard transform of Ailon and Chazelle, "The fast Johnson-Lindenstrauss transform and approximate
nearest neighbors" (SIAM J. Comput. 39, 2009). A product costs that of `Hadamard` and a sign for each input; two small
matrix products on a GPU. Held are the signs, one number for each input channel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from subspace._base.key import Key
from subspace._base.layout import STANDARD, Layout
from subspace._base.plug_in import require_key
from subspace.offsets.hadamard import Hadamard
from subspace.products.flops import Flops
from subspace.products.weight import Structure


class SignedHadamard(Hadamard):
    """d = gain * H diag(s), H the cut Walsh-Hadamard matrix of `Hadamard`, for any size, s of +-1 for each channel.

    A channel is a place on the weight's second axis, with one sign for all of its taps.

    Args:
        like: The weight, or any floating-point tensor of its shape, dtype and device; its values are not kept.
        key: Where the signs come from.
        gain: Of d.
        layout: How the weight is a matrix.

    >>> d = SignedHadamard(torch.empty(8, 8), key=Key(0))()
    >>> torch.allclose(d @ d.T, torch.eye(8), atol=1e-6), torch.equal(d.abs(), Hadamard(d)().abs())
    (True, True)
    """

    def __init__(self, like: Tensor, *, key: Key | None = None, gain: float = 1.0, layout: Layout = STANDARD) -> None:
        super().__init__(like, key=require_key(key, self), gain=gain, layout=layout)
        self.rebuild()

    def rebuild(self) -> None:
        drawn = require_key(self.key, self).fold("signs").signs(self.layout.channels(self.shape))
        self.signs = torch.from_numpy(drawn).to(self.like)

    def matrix(self) -> Tensor:
        return super().matrix().mul_(self.signs.repeat(self.layout.taps(self.shape)))

    def linear(self, x: Tensor) -> Tensor:
        return super().linear(x * self.signs)

    def structure(self) -> Structure | None:
        return Structure("hadamard", self.gain, self.signs) if self.layout == STANDARD else None

    def flops(self, groups: int = 1, *, alpha: bool = False) -> Flops | None:
        hadamard, n = super().flops(groups, alpha=alpha), self.fans[1]
        return None if hadamard is None else hadamard + Flops(n, n)
