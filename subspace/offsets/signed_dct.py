"""The DCT offset at inputs whose channels have random signs: as dense and nearly as cheap, and without a favourite.

The first coefficients of a DCT are the low frequencies, and the truncated one keeps nothing else. Inputs whose channels
agree in sign, as those behind a ReLU do, come out almost all in the first of them, and without a normalisation the
other outputs are next to 0 (docs/findings.md). Signs drawn from the key spread the input over all coefficients
first, as in the randomised Hadamard transform of Ailon and Chazelle, "The fast Johnson-Lindenstrauss transform and
approximate nearest neighbors" (SIAM J. Comput. 39, 2009).

A product costs a DCT's and a sign for each input. Held are the signs, one number for each input channel.
"""

from __future__ import annotations

from torch import Tensor

from subspace._base.key import Key
from subspace._base.layout import STANDARD, Layout
from subspace._base.plug_in import require_key
from subspace.offsets.dct import DCT
from subspace.offsets.signed import Signed


class SignedDCT(Signed, DCT):
    """d = gain * D diag(s), D the truncated orthonormal DCT-II and s of +-1, one for each input channel.

    A channel is a place on the weight's second axis, with one sign for all of its taps.

    Args:
        like: The weight, or any floating-point tensor of its shape, dtype and device; its values are not kept.
        key: Where the signs come from.
        gain: Of d.
        layout: How the weight is a matrix.

    >>> import torch
    >>> d = SignedDCT(torch.empty(2, 8), key=Key(0))()
    >>> torch.allclose(d @ d.T, torch.eye(2), atol=1e-6), torch.equal(d.abs(), DCT(d)().abs())
    (True, True)
    """

    def __init__(self, like: Tensor, *, key: Key | None = None, gain: float = 1.0, layout: Layout = STANDARD) -> None:
        super().__init__(like, key=require_key(key, self), gain=gain, layout=layout)
        self.rebuild()
