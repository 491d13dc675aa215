"""What a route is: one way to compute a product and its gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Protocol

from torch import Tensor

from subspace.products.form import Layout
from subspace.products.geometry import Geometry
from subspace.products.problem import Problem
from subspace.products.weight import Gradients, Needs, Weight


class Bound(Protocol):
    """A product by theta as it lies, for one kind of x and one index; nothing checks what it is given.

    All tensors are contiguous float32 on the CPU, but images channels_last where x was, and none is empty.
    """

    def forward(self, x: Tensor, theta: Tensor, y: Tensor) -> None:
        """Write w x into y."""

    def backward(self, gy: Tensor, x: Tensor, theta: Tensor, gx: Tensor | None, gtheta: Tensor | None) -> None:
        """Write the gradients, each where wanted."""


class Route(ABC):
    """One way to compute a product. name: as `structured` takes it; layers and how: of which, and how, in a few words.

    The x of a linear map is (rows, n_in), contiguous or not; that of a convolution (N, C, *spatial), contiguous or
    channels_last, and so is gy, in the same format. Neither is empty, except for the dense route. No autograd, no
    autocast. Results may have any strides, and any floating-point dtype.
    """

    name: ClassVar[str]
    layers: ClassVar[str]
    how: ClassVar[str]
    takes_signs: ClassVar[bool] = False  # of a weight; others are given x and w turned, as if there were none

    @abstractmethod
    def supports(self, problem: Problem) -> bool:
        """Whether it can compute this."""

    @abstractmethod
    def counts(self, problem: Problem) -> tuple[float, ...]:
        """What both passes with all gradients do of each kind (FLOPs, numbers moved, ...); the last is 1, the call.

        Its time is the sum of these, each times a constant of the machine.
        """

    @abstractmethod
    def forward(self, x: Tensor, w: Weight, geometry: Geometry) -> Tensor:
        """w x: (rows, n_out), or (N, C_out, *spatial')."""

    @abstractmethod
    def backward(self, gy: Tensor, x: Tensor, w: Weight, geometry: Geometry, needs: Needs) -> Gradients:
        """The gradients that are needed."""

    def bind(self, problem: Problem, layout: Layout, w: Weight) -> Bound | None:
        """Its product with all worked out that is the same at every call; by default None, for none.

        It is asked for an x that is contiguous, or channels_last images, and a w whose index has been checked.
        """
        return None
