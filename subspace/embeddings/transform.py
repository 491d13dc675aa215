"""Orthonormal bases of the space of a weight: ordinary training, and with `Basis` tickets, in other coordinates.

A new one is a file of one class with two methods, `analyse` and `synthesise`.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Literal

from torch import Tensor

from subspace._base.dtypes import at_least_float32
from subspace._base.key import Key
from subspace.embeddings.base import Embedding

OUTPUTS, INPUTS = 0, 1  # the axes of the matrix


class Transform(Embedding):
    """W = A^T C B, A and B orthonormal, theta = the coefficients C = A W B^T; dim = numel, U^T U = I.

    C has the weight's shape, and its matrix the order of the DCT's patches. Two methods make it complete: A and B along
    the outputs and the inputs.
    """

    def __init__(self, like: Tensor, *, key: Key | None = None) -> None:
        super().__init__(like, like.numel(), key=key)

    @abc.abstractmethod
    def analyse(self, x: Tensor, axis: int) -> Tensor:
        """A x along the last axis for axis 0, the outputs; B x for axis 1, the inputs."""

    @abc.abstractmethod
    def synthesise(self, c: Tensor, axis: int) -> Tensor:
        """A^T c or B^T c along the last axis."""

    @abc.abstractmethod
    def axis_flops(self, axis: int) -> float:
        """The FLOPs of `analyse` for one row of that axis."""

    def forward(self, theta: Tensor) -> Tensor:
        return self._both(theta.reshape(self.shape), self.synthesise)

    def adjoint(self, weight: Tensor) -> Tensor:
        return self._both(weight, self.analyse).reshape(-1)

    def coordinates(self, weight: Tensor) -> Tensor:
        return self.adjoint(weight)

    def _both(self, weight: Tensor, along: Callable[[Tensor, int], Tensor]) -> Tensor:
        matrix = self.layout.to_matrix(weight).to(at_least_float32(weight.dtype))
        turned = along(along(matrix, INPUTS).mT, OUTPUTS).mT
        return self.layout.from_matrix(turned, self.shape).to(weight.dtype)

    def around(self, x: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
        """x W^T = A^T (C B x), by a product with C alone: (..., n_in) -> (..., n_out)."""
        wide = x.to(at_least_float32(x.dtype))
        return self.synthesise(product(self.analyse(wide, INPUTS)), OUTPUTS).to(x.dtype)

    def build_flops(self) -> float:
        n_out, n_in = self.fans
        return n_out * self.axis_flops(INPUTS) + n_in * self.axis_flops(OUTPUTS)


class Separable(Transform):
    """A transform of one axis, along the axes of the weight.

    Args:
        like: The weight, or any floating-point tensor of its shape, dtype and device; its values are not kept.
        key: Not used.
        over: The "matrix": along its outputs and along its inputs, the patches of a convolution. Or the "filters", each
            by itself: along its channels and each axis of its taps, and not along the outputs.

    Raises:
        ValueError: If `over` is neither.
    """

    def __init__(self, like: Tensor, *, key: Key | None = None, over: Literal["matrix", "filters"] = "matrix") -> None:
        if over not in ("matrix", "filters"):
            raise ValueError(f"over must be 'matrix' or 'filters', got {over!r}")
        super().__init__(like, key=key)
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
        return [] if axis == OUTPUTS else [*self.shape[2:], *self.shape[1:2]]

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
