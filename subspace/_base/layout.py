"""How a tensor is the matrix of a linear map: which of its axes count outputs, inputs, and taps of a convolution."""

from __future__ import annotations

from typing import NamedTuple

from torch import Size, Tensor

Axes = tuple[int, ...]


class Layout(NamedTuple):
    """The axes of outputs, of inputs (channels) and of a batch of matrices; all others are the taps of a convolution.

    The matrix has a row for each output and a column for each tap and channel, the channel fastest: that of a
    convolution's weight, (o, c, kh, kw), is (o, kh kw c). An axis that a tensor does not have counts as one of size 1.

    >>> Layout().fans(Size([8, 3, 5, 5])), Layout(outputs=(1,), inputs=(0,)).fans(Size([8, 3, 5, 5]))
    ((8, 75), (3, 200))
    """

    outputs: Axes = (0,)
    inputs: Axes = (1,)
    batch: Axes = ()

    def fans(self, shape: Size) -> tuple[int, int]:
        """(n_out, n_in) of the matrix."""
        n_out = _size(shape, self.outputs)
        return n_out, shape.numel() // max(1, n_out * _size(shape, self.batch))

    def channels(self, shape: Size) -> int:
        """The inputs that a tap sees."""
        return _size(shape, self.inputs)

    def taps(self, shape: Size) -> int:
        """The taps of the convolution; 1 for a linear map."""
        return _size(shape, self._taps(shape))

    def to_matrix(self, weight: Tensor) -> Tensor:
        """The weight as a matrix: shape -> (*batch, n_out, n_in)."""
        return weight.permute(self._order(weight.shape)).reshape(*self._batch(weight.shape), *self.fans(weight.shape))

    def from_matrix(self, matrix: Tensor, shape: Size) -> Tensor:
        """The inverse of `to_matrix`; a matrix without batch axes, (n_out, n_in), is that of the whole batch."""
        order = self._order(shape)
        ordered = matrix.expand(*self._batch(shape), *matrix.shape[-2:]).reshape([shape[axis] for axis in order])
        return ordered.permute([order.index(axis) for axis in range(len(shape))])

    def _taps(self, shape: Size) -> Axes:
        return tuple([axis for axis in range(len(shape)) if axis not in self.batch + self.outputs + self.inputs])

    def _order(self, shape: Size) -> list[int]:
        order = self.batch + self.outputs + self._taps(shape) + self.inputs
        return [axis for axis in order if axis < len(shape)]

    def _batch(self, shape: Size) -> list[int]:
        return [shape[axis] for axis in self.batch]


STANDARD = Layout()


def _size(shape: Size, axes: Axes) -> int:
    size = 1
    for axis in axes:  # in plain steps, which torch.compile can trace
        size *= shape[axis] if axis < len(shape) else 1
    return size
