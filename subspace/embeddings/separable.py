"""Orthonormal bases of one transform for every axis of a weight; a new one is a file of one class with two methods."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Literal

from torch import Tensor

from subspace._base.key import Key
from subspace._base.layout import STANDARD, Layout
from subspace.embeddings.basis import OUTPUTS, Transform


class Separable(Transform):
    """A transform of one axis, along the axes of the weight.

    Args:
        like: The weight, or any floating-point tensor of its shape, dtype and device; its values are not kept.
        key: Not used.
        over: The "matrix": along its outputs and along its inputs, the patches of a convolution. Or the "filters", each
            by itself: along its channels and each axis of its taps, and not along the outputs.
        layout: How the weight is a matrix, or several.

    Raises:
        ValueError: If `over` is neither.
    """

    def __init__(
        self,
        like: Tensor,
        *,
        key: Key | None = None,
        over: Literal["matrix", "filters"] = "matrix",
        layout: Layout = STANDARD,
    ) -> None:
        if over not in ("matrix", "filters"):
            raise ValueError(f"over must be 'matrix' or 'filters', got {over!r}")
        super().__init__(like, key=key, layout=layout)
        self.over = over

    @abc.abstractmethod
    def transform(self, x: Tensor) -> Tensor:
        """Orthonormal, along the last axis, for any length."""

    @abc.abstractmethod
    def inverse(self, c: Tensor) -> Tensor:
        """The inverse of `transform`."""

    @abc.abstractmethod
    def length_flops(self, n: int) -> float:
        """The FLOPs of one transform of length n."""

    def analyse(self, x: Tensor, axis: int) -> Tensor:
        return self._along(x, axis, self.transform)

    def synthesise(self, c: Tensor, axis: int) -> Tensor:
        return self._along(c, axis, self.inverse)

    def _sizes(self, axis: int) -> list[int]:
        """Of the axes that are transformed one after the other."""
        if self.over == "matrix":
            return [self.fans[axis]]
        _, channels, *taps = self.layout.convolution(self.shape)
        return [] if axis == OUTPUTS else [*taps, channels]

    def _along(self, x: Tensor, axis: int, transform: Callable[[Tensor], Tensor]) -> Tensor:
        sizes = self._sizes(axis)
        if len(sizes) < 2:
            return transform(x) if sizes else x
        y = x.reshape(*x.shape[:-1], *sizes)
        for each in range(1, len(sizes) + 1):
            y = transform(y.transpose(-each, -1)).transpose(-each, -1)
        return y.reshape(x.shape)

    def axis_flops(self, axis: int) -> float:
        return sum(self.fans[axis] / n * self.length_flops(n) for n in self._sizes(axis))
