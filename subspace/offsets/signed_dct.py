"""The DCT offset at inputs whose channels have random signs: as dense and nearly as cheap, and without a favourite.

The first coefficients of a DCT are the low frequencies, and the truncated one keeps nothing else. Inputs whose channels
agree in sign, as those behind a ReLU do, come out almost all in the first of them, and without a normalisation the
other outputs are next to 0 (docs/findings.md). Signs drawn from the key spread the input over all coefficients
first, as in the randomised Hadamard transform of Ailon and Chazelle, "The fast Johnson-Lindenstrauss transform and
approximate nearest neighbors" (SIAM J. Comput. 39, 2009).

A product costs a DCT's and a sign for each input. Held are the signs, one number for each input channel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from subspace._base.key import Key
from subspace._base.layout import STANDARD, Layout
from subspace._base.plug_in import require_key
from subspace.offsets.dct import DCT
from subspace.products.flops import Flops
from subspace.products.weight import Structure


class SignedDCT(DCT):
    """d = gain * D diag(s), D the truncated orthonormal DCT-II and s of +-1, one for each input channel.

    A channel is a place on the weight's second axis, with one sign for all of its taps.

    Args:
        like: The weight, or any floating-point tensor of its shape, dtype and device; its values are not kept.
        key: Where the signs come from.
        gain: Of d.
        layout: How the weight is a matrix.

    >>> d = SignedDCT(torch.empty(2, 8), key=Key(0))()
    >>> torch.allclose(d @ d.T, torch.eye(2), atol=1e-6), torch.equal(d.abs(), DCT(d)().abs())
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
        return super().linear(x * self.signs.to(x.dtype))

    def structure(self) -> Structure | None:
        return Structure("dct", self.gain, self.signs) if self.layout == STANDARD else None

    def flops(self, groups: int = 1, *, alpha: bool = False) -> Flops | None:
        dct, n = super().flops(groups, alpha=alpha), self.fans[1]
        return None if dct is None else dct + Flops(n, n)
