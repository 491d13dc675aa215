"""The interface of offsets: a fixed tensor d with the shape of a weight."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from subspace.fixed import Fixed


class Offset(Fixed, abc.ABC):
    """A fixed tensor d, the same at every call."""

    if TYPE_CHECKING:

        def __call__(self) -> Tensor: ...

    @abc.abstractmethod
    def forward(self) -> Tensor:
        """d: shape."""

    def linear(self, x: Tensor) -> Tensor:
        """x d^T, for a d of two axes: (..., n_in) -> (..., n_out)."""
        return F.linear(x, self())
