"""d = the weights as they are: fine-tuning in a subspace."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from subspace._base.key import Key
from subspace.offsets.base import Offset

if TYPE_CHECKING:
    from typing_extensions import Self


class Pretrained(Offset):
    """d = a copy of `like`. It is in no checkpoint and no state_dict: load the pretrained weights, then register.

    It keeps its values whatever becomes of the module's: on the meta device, and through `to_empty`.

    Args:
        like: The weight.
        key: Not used.

    Raises:
        ValueError: If a value is not finite, or there are none, on the meta device.
    """

    def __init__(self, like: Tensor, *, key: Key | None = None) -> None:
        super().__init__(like, key=key)
        if like.is_meta:
            raise ValueError("pretrained weights must have values, got some on the meta device")
        if not bool(like.isfinite().all()):
            raise ValueError(f"pretrained weights must be finite, got {int((~like.isfinite()).sum())} that are not")
        self.weight = like.detach().clone()

    def forward(self) -> Tensor:
        return self.weight

    def has_fast_linear(self) -> bool:
        return True  # d is there anyway

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        if not (moved := fn(self.weight.new_empty(0))).is_meta:  # which has no values to give back
            self.weight = self.weight.to(moved)  # not fn, as that of `to_empty` gives none either
        return self
