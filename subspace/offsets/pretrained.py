"""d = the weights as they are: fine-tuning in a subspace.

The tensor itself is held, not a copy. `register` gives its Parameter other memory in place of overwriting it, so that a
memory-mapped file stays on the disk, and any number of tuned models share one base: a deep copy of a registered model
has the same d, for nothing ever writes into it. (A plain model's deep copy holds copies of its weights before it comes
here: tune one model and copy that, or see `subspace.Deltas`.)

A quantised tensor of torchao, or of `subspace.from_bitsandbytes`, is multiplied by with its own product, and stays
quantised. Where d is asked for, as every read of `module.weight` does, it is dequantised.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from subspace._base.key import Key
from subspace._base.quantised import dequantised, is_quantised, quantised_linear, values_of
from subspace._base.sharded import is_sharded, linear_in_parts, whole
from subspace.offsets.base import Offset
from subspace.products.flops import Flops
from subspace.products.weight import Structure

if TYPE_CHECKING:
    from typing_extensions import Self


class Pretrained(Offset):
    """d = `like` itself. It is in no checkpoint and no state_dict: load the pretrained weights, then register.

    Whoever writes into that tensor afterwards changes d. It keeps its values whatever becomes of the module's: on the
    meta device, and through `to_empty`. Deep copies share them; moved to another dtype or device, each has its own.

    Args:
        like: The weight; also a quantised one of torchao or of `subspace.from_bitsandbytes`.
        key: Not used.

    Raises:
        ValueError: If a value is not finite, or there are none, on the meta device.
    """

    dense = "weight"

    def __init__(self, like: Tensor, *, key: Key | None = None) -> None:
        super().__init__(like, key=key)
        if like.is_meta:
            raise ValueError("pretrained weights must have values, got some on the meta device")
        if bad := sum(map(_count_not_finite, values_of(like))):
            raise ValueError(f"pretrained weights must be finite, got {bad} that are not")
        # The values alone: `detach` would share the count of writes too, and with it the optimizer's writes to theta.
        self.weight = like.detach() if is_quantised(like) else like.data

    def forward(self) -> Tensor:
        """d; a quantised one is dequantised for it, a sharded one gathered."""
        return dequantised(self.weight, self.like.dtype) if is_quantised(self.weight) else whole(self.weight)

    def linear(self, x: Tensor) -> Tensor:
        if is_sharded(self.weight):
            return linear_in_parts(x, self.weight)
        if is_quantised(self.weight):
            return quantised_linear(x.to(self.weight.dtype), self.weight).to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype))

    def structure(self) -> Structure | None:
        plain = not (is_quantised(self.weight) or is_sharded(self.weight))
        return Structure("given", 1.0, matrix=self.weight) if plain else None

    def flops(self, groups: int = 1, *, alpha: bool = False) -> Flops:
        each, of_alpha = 2.0 * self.shape.numel(), self.fans[0] * alpha
        return Flops(each + of_alpha, each + of_alpha, 2.0 * of_alpha)

    def __deepcopy__(self, memo: dict[int, Any]) -> Pretrained:
        memo[id(self.weight)] = self.weight
        memo[id(self)] = replica = type(self).__new__(type(self))
        replica.__dict__ = copy.deepcopy(self.__dict__, memo)
        return replica

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        carrier = fn(torch.empty(0, dtype=self.weight.dtype, device=self.weight.device))
        if not carrier.is_meta:  # which has no values to give back
            now = carrier.device, carrier.dtype
            self.weight = self.weight.to(*now)  # not fn, as that of `to_empty` gives none either
        return self


def _count_not_finite(values: Tensor) -> int:
    """How many there are; the smallest and the largest tell, without a tensor of the same size, that there are none."""
    if values.numel() == 0 or all(bool(end.isfinite()) for end in values.aminmax()):
        return 0
    return int((~values.isfinite()).sum())
