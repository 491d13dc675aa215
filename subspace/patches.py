"""A weight as the matrix that multiplies patches, with the channel fastest among its columns."""

from __future__ import annotations

from einops import rearrange
from torch import Size, Tensor


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
