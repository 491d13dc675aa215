"""A signed permutation as offset: one input for every output, or one output for every input; a product in O(q).

The cheapest orthogonal d there is. Held are a place and a number for each output, or input if there are more of these.
"""

from __future__ import annotations

import torch
from torch import Tensor

from subspace._base.balanced import balanced
from subspace._base.dtypes import at_least_float32
from subspace._base.key import Key
from subspace._base.layout import STANDARD, Layout
from subspace._base.plug_in import require_key
from subspace.offsets.by_product import ByProduct
from subspace.products.flops import Flops


class SignedPermutation(ByProduct):
    """d = gain * P diag(s), P a random permutation and s of +-1; where there are fewer inputs or outputs, they share.

    Of more outputs than inputs, every output has one input, and every input n_out / n_in outputs, rounded up or down;
    and the other way round. An input (or output) that serves c of them does so with +-c^-1/2. So d is semi-orthogonal,
    and |d|_F^2 = gain^2 min(n_in, n_out) as for the DCT. Patches are ordered as for the DCT.

    Args:
        like: The weight, or any floating-point tensor of its shape, dtype and device; its values are not kept.
        key: Where places and signs come from.
        gain: Of d.
        layout: How the weight is a matrix.

    >>> d = SignedPermutation(torch.empty(4, 4), key=Key(0))()
    >>> torch.equal(d @ d.T, torch.eye(4)), d.abs().sum().item()
    (True, 4.0)
    """

    def __init__(self, like: Tensor, *, key: Key | None = None, gain: float = 1.0, layout: Layout = STANDARD) -> None:
        super().__init__(like, key=require_key(key, self), layout=layout)
        self.gain = gain
        self.rebuild()

    def rebuild(self) -> None:
        key, fewer, more = require_key(self.key, self), min(self.fans), max(self.fans)
        places = torch.from_numpy(balanced(key, more, fewer))
        signs = torch.from_numpy(key.fold("signs").signs(more))
        factors = signs * torch.bincount(places, minlength=fewer)[places].double().rsqrt()
        self.places = places.to(self.like.device)
        self.factors = factors.to(self.like)

    def linear(self, x: Tensor) -> Tensor:
        (n_out, n_in), factors = self.fans, self.gain * self.factors
        wide = x.to(at_least_float32(x.dtype))
        if n_out >= n_in:
            return (wide[..., self.places] * factors).to(x.dtype)
        products = wide * factors
        return products.new_zeros(*x.shape[:-1], n_out).index_add(-1, self.places, products).to(x.dtype)

    def flops(self, groups: int = 1, *, alpha: bool = False) -> Flops:
        m, entries = self.fans[0], 2.0 * max(self.fans)
        return Flops(entries + m * alpha, entries + m * alpha, 2.0 * m * alpha)
