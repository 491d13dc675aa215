"""The interface of offsets: a fixed tensor d with the shape of a weight."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from subspace._base.plug_in import PlugIn
from subspace.products.flops import Flops
from subspace.products.weight import Structure


class Offset(PlugIn, abc.ABC):
    """A fixed tensor d, the same at every call.

    Only `forward` is abstract: it makes an offset complete. What else an offset can say of itself makes it fast.
    """

    is_drawn_by_entry = False  # so that one draw serves several matrices
    dense: str | None = None  # the attribute that is d itself or None, if there is one: `shard_offsets` splits it

    if TYPE_CHECKING:

        def __call__(self) -> Tensor: ...

    @abc.abstractmethod
    def forward(self) -> Tensor:
        """d: shape, in like's dtype or, if that is of half precision, float32."""

    def linear(self, x: Tensor) -> Tensor:
        """x d^T, for a d of two axes: (..., n_in) -> (..., n_out). By default d is built for it."""
        return F.linear(x, self.layout.to_rows(self()).to(x.dtype))

    def has_fast_linear(self) -> bool:
        """Whether `linear` takes less than to build d: by default, whether a class has its own, for one matrix."""
        return type(self).linear is not Offset.linear and self.matrices == 1

    def structure(self) -> Structure | None:
        """What d is as a transform that `products` multiply by; None if it is none."""
        return None

    def is_same(self, other: Offset) -> bool:
        """Whether both are one d for certain: one object, or of one layout and structure."""
        if self is other or (self.shape, self.layout) != (other.shape, other.layout):
            return self is other
        mine, others = self.structure(), other.structure()
        if mine is None or others is None:
            return False
        return mine.gain == others.gain and mine.has_transform_of(others)

    def flops(self, groups: int = 1, *, alpha: bool = False) -> Flops | None:
        """The FLOPs of a product with d, or with alpha d, at each row or pixel; None if d has to be built.

        groups: of the convolution.
        """
        return None
