"""A compiled product that reads theta where it lies, and writes the gradient to it in one piece."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from torch import Tensor

from subspace.products.form import Layout
from subspace.products.native.load import check

SIZE = 4  # bytes of a number


class Bound:
    """What `Route.bind` gives.

    run(x, y, scale, values) and run_back(gy, x, gx, gscale, gvalues, scale, values) take addresses, but for the scale,
    None for what is not wanted, and return what `check` takes.
    """

    def __init__(self, layout: Layout, run: Callable[..., Any], run_back: Callable[..., Any]) -> None:
        self.run, self.run_back = run, run_back
        self.fixed, self.gain, self.values = layout.fixed, layout.gain, SIZE * layout.first
        self.scale = None if layout.at is None else SIZE * layout.at

    def forward(self, x: Tensor, theta: Tensor, y: Tensor) -> None:
        """Write w x into y."""
        at = theta.data_ptr()
        check(self.run(x.data_ptr(), y.data_ptr(), self._scale(at), at + self.values))

    def backward(self, gy: Tensor, x: Tensor, theta: Tensor, gx: Tensor | None, gtheta: Tensor | None) -> None:
        """Write the gradients, each where wanted."""
        at, to = theta.data_ptr(), None if gtheta is None else gtheta.data_ptr()
        gscale = None if to is None or self.scale is None else to + self.scale
        found = None if gx is None else gx.data_ptr(), gscale, None if to is None else to + self.values
        check(self.run_back(gy.data_ptr(), x.data_ptr(), *found, self._scale(at), at + self.values))
        if gscale is not None and self.gain != 1:
            ctypes.c_float.from_address(gscale).value *= self.gain

    def _scale(self, at: int) -> float:
        if self.scale is None:
            return self.fixed
        return self.fixed + self.gain * ctypes.c_float.from_address(at + self.scale).value
