"""The Walsh-Hadamard offset at inputs whose channels have random signs: without a favourite, as `SignedDCT`.

The randomised Hadamard transform of Ailon and Chazelle, "The fast Johnson-Lindenstrauss transform and approximate
nearest neighbors" (SIAM J. Comput. 39, 2009). A product costs that of `Hadamard` and a sign for each input; two small
matrix products on a GPU. Held are the signs, one number for each input channel.
"""

from __future__ import annotations

from torch import Tensor

from subspace._base.key import Key
from subspace._base.layout import STANDARD, Layout
from subspace._base.plug_in import require_key
from subspace.offsets.hadamard import Hadamard
from subspace.offsets.signed import Signed


class SignedHadamard(Signed, Hadamard):
    """d = gain * H diag(s), H the cut Walsh-Hadamard matrix of `Hadamard`, for any size, s of +-1 for each channel.

    A channel is a place on the weight's second axis, with one sign for all of its taps.

    Args:
        like: The weight, or any floating-point tensor of its shape, dtype and device; its values are not kept.
        key: Where the signs come from.
        gain: Of d.
        layout: How the weight is a matrix.

    >>> import torch
    >>> d = SignedHadamard(torch.empty(8, 8), key=Key(0))()
    >>> torch.allclose(d @ d.T, torch.eye(8), atol=1e-6), torch.equal(d.abs(), Hadamard(d)().abs())
    (True, True)
    """

    def __init__(self, like: Tensor, *, key: Key | None = None, gain: float = 1.0, layout: Layout = STANDARD) -> None:
        super().__init__(like, key=require_key(key, self), gain=gain, layout=layout)
        self.rebuild()
