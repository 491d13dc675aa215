"""Offsets that are given by their product: d is what `linear` makes of the unit vectors."""

from __future__ import annotations

import abc

import torch
from torch import Tensor

from subspace._base.matrices import by_rows
from subspace.offsets.base import Offset


class ByProduct(Offset):
    """An offset whose `linear` is there before d is; it takes n_in numbers of any dtype in its last axis."""

    @abc.abstractmethod
    def linear(self, x: Tensor) -> Tensor:
        """x d^T, for d as a matrix: (..., n_in) -> (..., n_out)."""

    def forward(self) -> Tensor:
        n_out, n_in = self.fans
        columns = torch.arange(n_in, device=self.like.device)
        transposed = by_rows(n_in, n_out, self.like, lambda rows: self.linear((rows == columns).to(self.like.dtype)))
        return self.layout.from_matrix(transposed.T, self.shape)
