"""The geometry of a convolution: sizes, the part of x that a tap sees, and torch's dense products."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

Window = tuple[slice, ...]


class Geometry(NamedTuple):
    """kernel, stride, padding (zeros) and dilation: one number for each spatial axis, 1 to 3 of them."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def sizes(self, spatial: tuple[int, ...]) -> tuple[int, ...]:
        """The output's spatial sizes."""
        return tuple(
            (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, padding, dilation in zip(spatial, *self[:4], strict=True)
        )

    def window(self, tap: int, spatial: tuple[int, ...], part: Window) -> tuple[Window, Window]:
        """What a tap (flat) sees for a part of the output: slices of x's spatial axes, and of the part they land on."""
        seen, lands = [], []
        for size, kernel, stride, padding, dilation, out in reversed(list(zip(spatial, *self[:4], part, strict=True))):
            tap, position = divmod(tap, kernel)
            shift = position * dilation - padding
            first = max(out.start, -(shift // stride))  # the ceiling of -shift / stride
            last = max(first, min(out.stop, (size - 1 - shift) // stride + 1))
            seen.append(slice(first * stride + shift, max(0, (last - 1) * stride + shift + 1), stride))
            lands.append(slice(first - out.start, last - out.start))
        return tuple(reversed(seen)), tuple(reversed(lands))

    def convolve(self, x: Tensor, w: Tensor) -> Tensor:
        """The convolution of x with a dense w."""
        zeros = [0] * len(self.kernel)
        return torch.convolution(x, w, None, self.stride, self.padding, self.dilation, False, zeros, self.groups)

    def gradients(
        self, gy: Tensor, x: Tensor, w: Tensor, needs_x: bool, needs_w: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """(gx, gw) of `convolve`, None where not needed; without needs_w only the shape and format of x matter."""
        zeros, mask = [0] * len(self.kernel), (needs_x, needs_w, False)
        gx, gw, _ = torch.ops.aten.convolution_backward(
            gy, x, w, None, self.stride, self.padding, self.dilation, False, zeros, self.groups, mask
        )
        return gx, gw
