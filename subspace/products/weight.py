"""A weight w = scale T + S as every product takes it, and the gradients to it."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor


class Weight(NamedTuple):
    """w = scale T + S: T a fixed transform, S sparse.

    scale: one element, None for T = 0. values: (k,), the nonzeros of S; index: (k,), sorted places in w.
    shape: of w, (n_out, n_in) or (n_out, C, *kernel). transform: "dct", "hadamard" or "zero".
    """

    scale: Tensor | None
    values: Tensor
    index: Tensor  # type: ignore[assignment]  # which hides tuple's method, that nobody needs
    shape: tuple[int, ...]
    transform: str

    @property
    def fans(self) -> tuple[int, int]:
        """(n_out, n_in) of w as a matrix: its first axis, and all the others together."""
        return self.shape[0], math.prod(self.shape[1:])


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
