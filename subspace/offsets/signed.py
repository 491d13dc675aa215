"""What an offset becomes at inputs whose channels have random signs: d diag(s)."""

from __future__ import annotations

import torch
from torch import Tensor

from subspace._base.plug_in import require_key
from subspace.offsets.base import Offset
from subspace.products.flops import Flops
from subspace.products.weight import Structure


class Signed(Offset):
    """To be inherited from before an offset with a `matrix`: one sign s for each input channel, drawn from the key.

    A channel is a place on the weight's second axis, with one sign for all of its taps.
    """

    def rebuild(self) -> None:
        drawn = require_key(self.key, self).fold("signs").signs(self.layout.channels(self.shape))
        self.signs = torch.from_numpy(drawn).to(self.like)

    def matrix(self) -> Tensor:
        d: Tensor = super().matrix()  # type: ignore[misc]
        return d.mul_(self.signs.repeat(self.layout.taps(self.shape)))

    def linear(self, x: Tensor) -> Tensor:
        return super().linear(x * self.signs.to(x.dtype))

    def structure(self) -> Structure | None:
        unsigned = super().structure()
        return None if unsigned is None else unsigned._replace(signs=self.signs)

    def flops(self, groups: int = 1, *, alpha: bool = False) -> Flops | None:
        unsigned, n = super().flops(groups, alpha=alpha), self.fans[1]
        return None if unsigned is None else unsigned + Flops(n, n)
