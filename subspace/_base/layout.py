"""How a tensor is the matrix of a linear map: which of its axes count outputs, inputs, and taps of a convolution."""

from __future__ import annotations

from typing import NamedTuple

from torch import Size, Tensor

Axes = tuple[int, ...]
PARTS = ("out", "in", "batch", "tap")


class Layout(NamedTuple):
    """The axes of outputs, of inputs (channels) and of a batch of matrices; all others are the taps of a convolution.

    The matrix has a row for each output and a column for each tap and channel, the channel fastest: that of a
    convolution's weight, (o, c, kh, kw), is (o, kh kw c). An axis that a tensor does not have counts as one of size 1.

    blocks: how many matrices lie one after another along the first axis of outputs, as the four gates of an LSTM, or
    queries, keys and values. They are a batch too, behind the axes of `batch`.

    >>> Layout().fans(Size([8, 3, 5, 5])), Layout.parse("in out tap tap").fans(Size([8, 3, 5, 5]))
    ((8, 75), (3, 200))
    >>> Layout(blocks=3).fans(Size([24, 8])), Layout.parse("batch in out").fans(Size([64, 8, 16]))
    ((8, 8), (16, 8))
    """

    outputs: Axes = (0,)
    inputs: Axes = (1,)
    batch: Axes = ()
    blocks: int = 1

    @classmethod
    def parse(cls, axes: str, blocks: int = 1) -> Layout:
        """The layout of a tensor whose axes are called "out", "in", "batch" or "tap", in this order.

        Args:
            axes: A word for each axis, as "batch in out" for experts that multiply from the right.
            blocks: How many matrices lie one after another along the first "out".

        Raises:
            ValueError: For another word.
        """
        words = axes.split()
        if other := [word for word in words if word not in PARTS]:
            raise ValueError(f"axes must be called {', '.join(PARTS)}, got {other[0]!r}")
        outputs, inputs, batch, _ = (tuple(axis for axis, word in enumerate(words) if word == part) for part in PARTS)
        return cls(outputs, inputs, batch, blocks)

    def fans(self, shape: Size) -> tuple[int, int]:
        """(n_out, n_in) of one matrix."""
        n_out = _size(shape, self.outputs) // self.blocks
        return n_out, shape.numel() // max(1, n_out * self.matrices(shape))

    def matrices(self, shape: Size) -> int:
        """How many matrices the tensor holds."""
        return _size(shape, self.batch) * self.blocks

    def channels(self, shape: Size) -> int:
        """The inputs that a tap sees."""
        return _size(shape, self.inputs)

    def taps(self, shape: Size) -> int:
        """The taps of the convolution; 1 for a linear map."""
        return _size(shape, self._taps(shape))

    def convolution(self, shape: Size) -> Size:
        """The shape of one matrix as the weight of a convolution: (outputs, channels, *taps)."""
        return Size([self.fans(shape)[0], self.channels(shape), *(shape[axis] for axis in self._taps(shape))])

    def to_matrix(self, weight: Tensor) -> Tensor:
        """The weight as a matrix: shape -> (*batch, n_out, n_in), with blocks (*batch, blocks, n_out, n_in)."""
        return weight.permute(self._order(weight.shape)).reshape(*self._batch(weight.shape), *self.fans(weight.shape))

    def to_rows(self, weight: Tensor) -> Tensor:
        """The matrices below one another: shape -> (matrices n_out, n_in)."""
        return self.to_matrix(weight).reshape(-1, self.fans(weight.shape)[1])

    def to_convolution(self, weight: Tensor) -> Tensor:
        """The matrices below one another as the weight of a convolution: shape -> (matrices n_out, channels, *taps)."""
        taps = self._taps(weight.shape)
        order = [axis for axis in self.batch + self.outputs + self.inputs + taps if axis < weight.ndim]
        n_out, channels, *kernel = self.convolution(weight.shape)
        return weight.permute(order).reshape(self.matrices(weight.shape) * n_out, channels, *kernel)

    def from_matrix(self, matrix: Tensor, shape: Size) -> Tensor:
        """The inverse of `to_matrix`, also of (matrices, n_out, n_in); one (n_out, n_in) is that of the whole batch."""
        order, batch = self._order(shape), self._batch(shape)
        whole = matrix.expand(*batch, *matrix.shape) if matrix.ndim == 2 else matrix
        ordered = whole.reshape([shape[axis] for axis in order])
        return ordered.permute([order.index(axis) for axis in range(len(shape))])

    def _taps(self, shape: Size) -> Axes:
        return tuple([axis for axis in range(len(shape)) if axis not in self.batch + self.outputs + self.inputs])

    def _order(self, shape: Size) -> list[int]:
        order = self.batch + self.outputs + self._taps(shape) + self.inputs
        return [axis for axis in order if axis < len(shape)]

    def _batch(self, shape: Size) -> list[int]:
        return [shape[axis] for axis in self.batch] + ([self.blocks] if self.blocks > 1 else [])


STANDARD = Layout()


def checked(layout: Layout, shape: Size) -> Layout:
    """The layout with its axes as tuples; ValueError unless it is one of a tensor of that shape."""
    outputs, inputs, batch = map(tuple, layout[:3])
    blocks = layout.blocks
    named = outputs + inputs + batch
    if len({*named}) < len(named) or any(axis < 0 for axis in named):
        raise ValueError(f"layout must name each axis once, counted from 0, got {tuple(layout)}")
    if blocks < 1 or _size(shape, outputs) % blocks or (blocks > 1 and (not outputs or shape[outputs[0]] % blocks)):
        raise ValueError(f"layout must divide the outputs of shape {tuple(shape)} by blocks, got {blocks}")
    return Layout(outputs, inputs, batch, blocks)


def _size(shape: Size, axes: Axes) -> int:
    size = 1
    for axis in axes:  # in plain steps, which torch.compile can trace
        size *= shape[axis] if axis < len(shape) else 1
    return size
