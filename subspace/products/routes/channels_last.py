"""The dense route with x, y and their gradients in channels_last format."""

from __future__ import annotations

from torch import Tensor

from subspace._base.dtypes import at_least_float32
from subspace.products.geometry import Geometry, last_format
from subspace.products.problem import Problem
from subspace.products.routes.dense import Dense
from subspace.products.weight import Gradients, Needs, Weight


class ChannelsLast(Dense):
    """The dense route in channels_last format."""

    name = "channels_last"
    layers = "Conv2d, Conv3d"
    how = "as dense, with the activations in that memory format; on a CPU not in half precision"

    def supports(self, problem: Problem) -> bool:
        # In half precision torch 2.13 leaves gradients of some strided layers unwritten, and crashes on others.
        narrow = problem.device == "cpu" and problem.dtype != at_least_float32(problem.dtype)
        return len(problem.geometry.kernel) > 1 and not narrow

    def forward(self, x: Tensor, w: Weight, geometry: Geometry) -> Tensor:
        return super().forward(x.contiguous(memory_format=last_format(x)), w, geometry)

    def backward(self, gy: Tensor, x: Tensor, w: Weight, geometry: Geometry, needs: Needs) -> Gradients:
        gy, x = (t.contiguous(memory_format=last_format(t)) for t in (gy, x))
        return super().backward(gy, x, w, geometry, needs)
