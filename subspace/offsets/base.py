"""The interface of offsets: a fixed tensor d with the shape of a weight."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING

import torch.nn.functional as F
from einops import rearrange
from torch import Size, Tensor

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


def fans(shape: Size) -> tuple[int, int]:
    """(n_out, n_in) of a weight seen as a matrix: its first axis, and all the others together."""
    return (shape[0] if shape else 1), shape[1:].numel()


def from_matrix(matrix: Tensor, shape: Size) -> Tensor:
    """The (n_out, n_in) matrix as a weight, its columns running over patches with the channel fastest.

    Column (r kw + c) C + channel of the matrix is the entry [:, channel, r, c] of a convolution's weight.
    """
    if len(shape) < 3:
        return matrix.reshape(shape)
    return rearrange(matrix, "o (taps c) -> o c taps", c=shape[1]).reshape(shape)
