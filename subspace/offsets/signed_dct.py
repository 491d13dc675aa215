"""The DCT offset at inputs whose channels have random signs: as dense and nearly as cheap, and without a favourite.

The first coefficients of a DCT are the low frequencies, and the truncated one keeps nothing else. Inputs whose channels
agree in sign, as those behind a ReLU do, come out almost all in the first of them, and without a normalisation the
other outputs are next to 0 (benchmarks/FINDINGS.md). Signs drawn from the key spread the input over all coefficients
first, as in the randomised Hadamard transform of Ailon and Chazelle, "The fast Johnson-Lindenstrauss transform and
approximate nearest neighbors" (SIAM J. Comput. 39, 2009).

A product costs a DCT's and a sign for each input. Held are the signs, one number for each input channel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from subspace.fixed import required
from subspace.offsets.dct import DCT
from subspace.random import Key


class SignedDCT(DCT):
    """d = gain * D diag(s), D the truncated orthonormal DCT-II and s of +-1, one for each input channel.

    A channel is a place on the weight's second axis, with one sign for all of its taps.

    >>> d = SignedDCT(torch.empty(2, 8), key=Key(0))()
    >>> torch.allclose(d @ d.T, torch.eye(2), atol=1e-6), torch.equal(d.abs(), DCT(d)().abs())
    (True, True)
    """

    def __init__(self, like: Tensor, *, key: Key | None = None, gain: float = 1.0) -> None:
        super().__init__(like, key=required(key, self), gain=gain)
        self.rebuild()

    def rebuild(self) -> None:
        drawn = required(self.key, self).fold("signs").signs(self.shape[1:2].numel())
        self.signs = torch.from_numpy(drawn).to(self.like)

    def forward(self) -> Tensor:
        return super().forward().mul_(self.signs.reshape([*self.shape[1:2], *(1 for _ in self.shape[2:])]))

    def linear(self, x: Tensor) -> Tensor:
        return super().linear(x * self.signs)
