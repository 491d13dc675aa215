"""A weight w = scale T diag(signs) + S as every product takes it, and the gradients to it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Structure(NamedTuple):
    """d = gain T diag(signs), as an offset says that it is.

    transform: which T, "dct", "hadamard", "zero" or, for a T that is held, "given". signs: (C,), of +-1, one for each
    input channel; None for none. matrix: a given T, in the shape of the weight.
    """

    transform: str
    gain: float
    signs: Tensor | None = None
    matrix: Tensor | None = None

    @property
    def is_zero(self) -> bool:
        """Whether d = 0 for want of a transform."""
        return self.transform == "zero"

    def has_transform_of(self, other: Structure) -> bool:
        """Whether T diag(signs) is that of another."""
        if self.transform != other.transform or (self.signs is None) != (other.signs is None):
            return False
        if not _is_one(self.matrix, other.matrix):
            return False
        if self.signs is None or other.signs is None or self.signs is other.signs:
            return True
        return not self.signs.is_meta and torch.equal(self.signs, other.signs)


def _is_one(matrix: Tensor | None, other: Tensor | None) -> bool:
    """Whether both are None, one tensor, or of the same memory, as several that share pretrained weights."""
    if matrix is other or matrix is None or other is None or torch.compiler.is_compiling():
        return matrix is other  # a compiled graph has no addresses to compare
    if not type(matrix) is type(other) is Tensor or matrix.is_meta:
        return False
    return all(getattr(matrix, of)() == getattr(other, of)() for of in ("data_ptr", "size", "stride", "type"))


class Weight(NamedTuple):
    """w = scale T diag(signs) + S: T a fixed transform, S sparse.

    scale: one element, None for T = 0. values: (k,), the nonzeros of S; index: (k,), their places in w.
    shape: of w, (n_out, n_in) or (n_out, C, *kernel). transform, signs and matrix: as of a `Structure`.
    """

    scale: Tensor | None
    values: Tensor
    index: Tensor  # type: ignore[assignment]  # which hides tuple's method, that nobody needs
    shape: tuple[int, ...]
    transform: str
    signs: Tensor | None = None
    matrix: Tensor | None = None

    @property
    def fans(self) -> tuple[int, int]:
        """(n_out, n_in) of w as a matrix: its first axis, and all the others together."""
        return self.shape[0], math.prod(self.shape[1:])

    def turned(self) -> Weight:
        """The weight without signs that multiplies an input with signs: w = (scale T + S diag(signs)) diag(signs)."""
        return self if self.signs is None else self._replace(values=self.turn_values(self.values), signs=None)

    def turn_values(self, values: Tensor) -> Tensor:
        """Values with the signs of the channels of their columns; its own inverse, and adjoint."""
        if self.signs is None:
            return values
        channels = self.index // math.prod(self.shape[2:]) % self.shape[1]
        return values * self.signs.to(values.dtype)[channels]

    def turn_input(self, x: Tensor) -> Tensor:
        """x with the signs of its channels, on its second axis, those of every group after one another."""
        if self.signs is None:
            return x
        signs = self.signs.to(x.dtype).repeat(x.shape[1] // len(self.signs))
        return x * signs.reshape(-1, *(1 for _ in x.shape[2:]))


class Needs(NamedTuple):
    """Which gradients are wanted."""

    x: bool
    scale: bool
    values: bool


class Gradients(NamedTuple):
    """The gradients to x, scale and values; None where not wanted."""

    x: Tensor | None
    scale: Tensor | None
    values: Tensor | None
