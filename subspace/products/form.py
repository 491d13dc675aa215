"""How the numbers that train make a weight, and where in one vector they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from subspace.products.weight import Gradients, Weight


class Form(Protocol):
    """What makes a weight of the numbers that train, linear in them up to a constant, and its adjoint."""

    def __call__(self, *numbers: Any) -> Weight:
        """The weight; differentiable."""

    def needs(self, wanted: Sequence[bool]) -> tuple[bool, bool]:
        """Which gradients, to scale and to values, those to the numbers take."""

    def adjoint(self, gradients: Gradients) -> tuple[Tensor | None, ...]:
        """The gradients to the numbers; None where not wanted."""


class Given:
    """The form of a weight whose numbers are its scale and its values."""

    def __init__(self, w: Weight) -> None:
        self.w = w

    def __call__(self, *numbers: Any) -> Weight:
        scale, values = numbers
        return Weight(scale, values, *self.w[2:])

    def needs(self, wanted: Sequence[bool]) -> tuple[bool, bool]:
        scale, values = wanted
        return scale, values

    def adjoint(self, gradients: Gradients) -> tuple[Tensor | None, ...]:
        return gradients.scale, gradients.values


class Layout(NamedTuple):
    """Where one vector theta, of length dim, has a weight: scale = fixed + gain theta[at], the values from `first` on.

    at: None for a scale of `fixed` alone. Together they are all of theta.
    """

    dim: int
    fixed: float
    gain: float
    at: int | None
    first: int


class VectorForm(Form, Protocol):
    """One whose numbers are one vector theta; layout: of theta, None where products cannot read it as it lies."""

    layout: Layout | None

    def index(self) -> Tensor:
        """The places of the values, the same tensor at every call."""

    def matrix(self) -> Tensor | None:
        """A given T; None where it is none."""
