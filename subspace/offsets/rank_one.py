"""A seeded offset of rank one: the cheapest dense d there is, a product in O(n_in + n_out).

Price and Tanner's code has had such an offset, of Gaussian factors; no results with it are published.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from subspace._base.key import Key
from subspace._base.layout import STANDARD, Layout
from subspace._base.plug_in import require_key
from subspace.offsets.base import Offset
from subspace.offsets.gaussian import draw


class RankOne(Offset):
    """d = gain * min(n_out, n_in)^1/2 * u v^T, u and v of unit length, in directions drawn from the key.

    |d|_F^2 = gain^2 min(n_in, n_out) as for the DCT, but all of it in one singular value. Patches are ordered as for
    the DCT. Nothing is stored but the key; the n_out + n_in numbers are drawn again at every call.

    Args:
        like: The weight, or any floating-point tensor of its shape, dtype and device; its values are not kept.
        key: Where u and v come from.
        gain: Of d.
        layout: How the weight is a matrix.

    >>> d = RankOne(torch.empty(3, 5), key=Key(0), gain=2.0)()
    >>> int(torch.linalg.matrix_rank(d)), round(float(d.norm()) ** 2, 3)
    (1, 12.0)
    """

    def __init__(self, like: Tensor, *, key: Key | None = None, gain: float = 1.0, layout: Layout = STANDARD) -> None:
        super().__init__(like, key=require_key(key, self), layout=layout)
        self.gain = gain
        self._streams = tuple(str(require_key(key, self).fold(name)) for name in "uv")

    def factors(self) -> tuple[Tensor, Tensor]:
        """u, with all of the scale, and v of unit length: (n_out,), (n_in,)."""
        n_out, n_in = self.fans
        u, v = (
            draw(stream, [n], False, 1.0, self.like) for stream, n in zip(self._streams, (n_out, n_in), strict=True)
        )
        return self.gain * math.sqrt(min(n_out, n_in)) / u.norm() * u, v / v.norm()

    def forward(self) -> Tensor:
        u, v = self.factors()
        return self.layout.from_matrix(torch.outer(u, v), self.shape)

    def linear(self, x: Tensor) -> Tensor:
        u, v = self.factors()
        return ((x.to(v.dtype) @ v).unsqueeze(-1) * u).to(x.dtype)
