"""The geometry of a product: a convolution's sizes, what a tap sees of its input, and torch's own dense products."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Window = tuple[slice, ...]


class Geometry(NamedTuple):
    """kernel, stride, padding (zeros) and dilation: one number for each of up to 3 spatial axes; none for x w^T."""

    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    @property
    def is_pointwise(self) -> bool:
        """Whether it is one product for all channels at every row or pixel: a linear map, or one tap and no groups."""
        return self.groups == 1 and math.prod(self.kernel) == 1

    def sizes(self, spatial: tuple[int, ...]) -> tuple[int, ...]:
        """The output's spatial sizes."""
        return tuple(
            (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, padding, dilation in zip(spatial, *self[:4], strict=True)
        )

    def window(self, tap: int, spatial: tuple[int, ...], part: Window) -> tuple[Window, Window]:
        """What a tap (flat) sees for a part of the output: slices of x's spatial axes, and of the part they land on.

        >>> line = Geometry((3,), (1,), (1,), (1,))  # three taps, padded by one zero on each side
        >>> line.window(0, (8,), (slice(0, 8),))  # the first tap sees x[0:7], for y[1:8]
        ((slice(0, 7, 1),), (slice(1, 8, None),))
        """
        seen, lands = [], []
        for size, kernel, stride, padding, dilation, out in reversed(list(zip(spatial, *self[:4], part, strict=True))):
            tap, position = divmod(tap, kernel)
            shift = position * dilation - padding
            first = max(out.start, -(shift // stride))  # the ceiling of -shift / stride
            last = max(first, min(out.stop, (size - 1 - shift) // stride + 1))
            seen.append(slice(first * stride + shift, max(0, (last - 1) * stride + shift + 1), stride))
            lands.append(slice(first - out.start, last - out.start))
        return tuple(reversed(seen)), tuple(reversed(lands))

    def multiply(self, x: Tensor, w: Tensor) -> Tensor:
        """x w^T, or the convolution of x with w, for a dense w."""
        if not self.kernel:
            return F.linear(x, w)
        zeros = [0] * len(self.kernel)
        return torch.convolution(x, w, None, self.stride, self.padding, self.dilation, False, zeros, self.groups)

    def gradients(
        self, gy: Tensor, x: Tensor, w: Tensor, needs_x: bool, needs_w: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """(gx, gw) of `multiply`, None where not needed; without needs_w only the shape and format of x matter."""
        if not self.kernel:
            return gy @ w if needs_x else None, gy.t() @ x if needs_w else None
        zeros, mask = [0] * len(self.kernel), (needs_x, needs_w, False)
        gx, gw, _ = torch.ops.aten.convolution_backward(
            gy, x, w, None, self.stride, self.padding, self.dilation, False, zeros, self.groups, mask
        )
        return gx, gw


LINEAR = Geometry()


def memory_format(x: Tensor) -> torch.memory_format:
    """channels_last (of 4 or 5 axes) if x is that and not contiguous, else contiguous."""
    if x.ndim not in (4, 5) or x.is_contiguous() or not x.is_contiguous(memory_format=last_format(x)):
        return torch.contiguous_format
    return last_format(x)


def in_last_format(x: Tensor) -> Tensor:
    """x in channels_last; inside torch.func's transforms, which know of no formats, as it is."""
    return x if torch._C._are_functorch_transforms_active() else x.contiguous(memory_format=last_format(x))


def last_format(x: Tensor) -> torch.memory_format:
    """channels_last for 4 axes, for 5 its like."""
    return torch.channels_last if x.ndim == 4 else torch.channels_last_3d
