"""A product without its numbers: all that decides which routes can compute it, and what they cost."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from subspace.products.geometry import LINEAR, Geometry, memory_format
from subspace.products.weight import Weight


class Problem(NamedTuple):
    """shape and transform: of w; k: the nonzeros of S; x_shape: (rows, n_in), or (N, C, *spatial) of a convolution.

    channels_last: whether x has that memory format; else that of a convolution is contiguous.
    """

    shape: tuple[int, ...]
    k: int
    transform: str
    x_shape: tuple[int, ...]
    dtype: torch.dtype
    device: str
    channels_last: bool = False
    geometry: Geometry = LINEAR

    @classmethod
    def of(cls, x: Tensor, w: Weight, geometry: Geometry) -> Problem:
        """The problem of multiplying x by w; x: (..., n_in), or (N, C, *spatial)."""
        x_shape, last, k = tuple(x.shape), False, w.values.shape[0]
        if geometry.kernel:
            last = memory_format(x) != torch.contiguous_format
        elif len(x_shape) != 2:
            x_shape = math.prod(x_shape[:-1]), w.shape[1]
        return cls(w.shape, k, w.transform, x_shape, x.dtype, x.device.type, last, geometry)

    @property
    def kind(self) -> str:
        """ "linear" or "conv"."""
        return "conv" if self.geometry.kernel else "linear"

    @property
    def family(self) -> str:
        """The name that this problem shares with all those that the same constants describe."""
        kind = self.kind
        if kind == "conv":
            kind = "grouped" if self.geometry.groups > 1 else "conv" if self.taps > 1 else "pointwise"
        last, given = ", channels_last" * self.channels_last, ", given" * (self.transform == "given")
        return kind + last + given

    @property
    def taps(self) -> int:
        """The taps of the kernel; 1 for a linear map."""
        return math.prod(self.geometry.kernel)

    @property
    def rows(self) -> int:
        """Rows of x, or pixels of the output, over the batch."""
        return self.x_shape[0] * math.prod(self.geometry.sizes(self.x_shape[2:]))

    @property
    def entries(self) -> int:
        """The entries of w."""
        return math.prod(self.shape)

    @property
    def moved(self) -> int:
        """The numbers of x and y together."""
        return math.prod(self.x_shape) + self.rows * self.shape[0]
