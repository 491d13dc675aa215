"""Two numbers that tell one (d, U) from another: <r, d> and <r, U z>, for fixed pseudo-random r and z.

They are compared with a tolerance, since d and U z may be rounded differently on another machine. Another key, index or
gain moves them by the order of |d| or |U z|; one misplaced entry out of k, by the order of |U z| k^-1/2. For a weight
of two axes r = sum_j a_j b_j^T, so that <r, d> = sum_j <a_j, d b_j> takes products with d and not d itself: no more
memory and time than those do. Several are summed, as a single one can be near zero for a d of few rows.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from subspace._base.key import Key
from subspace._base.layout import STANDARD
from subspace.embeddings import Embedding
from subspace.offsets import Offset

NARROW = (torch.float16, torch.bfloat16)
PRODUCTS = 8


class Probe(NamedTuple):
    """<r, x>, and the difference from it that rounding can explain."""

    value: float
    tolerance: float

    def agrees_with(self, other: Probe) -> bool:
        """Whether both can be of one x, rounded as the one or the other was."""
        return abs(self.value - other.value) <= max(self.tolerance, other.tolerance)

    def rounded(self) -> Probe:
        """As a file needs it: to a hundredth of the tolerance, rounding being what that allows for."""
        if not 0 < self.tolerance < math.inf:
            return self
        places = 2 - math.floor(math.log10(self.tolerance))
        return Probe(round(self.value, places), round(self.tolerance, places))


def probe(x: Tensor, r: str = "r", dtype: torch.dtype | None = None) -> Probe:
    """<r, x> for the fixed numbers of the name `r`, in float64. dtype: that x has been rounded to, if not its own."""
    x = x.detach().resolve_conj()
    flat = (torch.view_as_real(x) if x.is_complex() else x).flatten().cpu().double()
    relative = 1e-2 if (dtype or x.dtype) in NARROW else 1e-4
    return Probe(float(flat @ _numbers(r, len(flat))), relative * float(flat.norm()))


def fingerprint(offset: Offset, embedding: Embedding, dtype: torch.dtype | None = None) -> dict[str, Probe]:
    """The probes of d and of U z, for a w of the dtype."""
    z = _numbers("z", embedding.dim).to(embedding.like)
    with torch.no_grad():
        if len(offset.shape) != 2 or not offset.layout == embedding.layout == STANDARD:
            return {"d": probe(offset(), dtype=dtype), "U": probe(embedding(z))}
        b = _numbers("b", PRODUCTS * offset.shape[1]).reshape(PRODUCTS, -1).to(offset.like)
        return {"d": probe(offset.linear(b), "a", dtype), "U": probe(embedding.linear(z, b), "a")}


def _numbers(name: str, n: int) -> Tensor:
    """n numbers of random signs and of magnitudes uniform on (1/2, 1)."""
    key = Key(0).fold("fingerprint").fold(name)
    return torch.from_numpy(key.fold("signs").signs(n) * (1 + key.uniform(n)) / 2)
