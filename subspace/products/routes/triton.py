"""The kernels for GPUs: a transform as two matrix products on the chip, and the sparse part beside it."""

from __future__ import annotations

from torch import Tensor

from subspace.products.geometry import Geometry
from subspace.products.parts import pointwise
from subspace.products.problem import Problem
from subspace.products.routes.base import Route
from subspace.products.triton import can_take, kernels
from subspace.products.triton.lengths import is_length, length, split
from subspace.products.weight import Gradients, Needs, Weight


class Triton(Route):
    """Call the kernels for GPUs."""

    name = "triton"
    layers = "Linear, Conv of one tap"
    how = "kernels for GPUs; DCT and Hadamard of a power of two from 256 to 32768; of convolutions channels_last"
    takes_signs = True

    def supports(self, problem: Problem) -> bool:
        if not (can_take(problem.device, problem.dtype) and problem.geometry.is_pointwise):
            return False
        if problem.geometry.kernel and not problem.channels_last:
            return False
        if problem.transform == "given":
            return False
        return problem.transform == "zero" or is_length(_length(problem), problem.dtype)

    def counts(self, problem: Problem) -> tuple[float, ...]:
        """Multiplications of the transforms, numbers moved, nonzeros times rows, nonzeros, the call."""
        products = 0.0
        if problem.transform != "zero":
            q1, q2 = split(_length(problem))
            products = float(problem.rows * q1 * q2 * (q1 + 2 * q2))
        return products, problem.moved, problem.k * problem.rows, problem.k, 1.0

    def forward(self, x: Tensor, w: Weight, geometry: Geometry) -> Tensor:
        return pointwise.forward(_forward, x, w, geometry)

    def backward(self, gy: Tensor, x: Tensor, w: Weight, geometry: Geometry, needs: Needs) -> Gradients:
        def gradients(gy: Tensor, x: Tensor, w: Weight, geometry: Geometry) -> Gradients:
            found: Gradients = kernels("rows").backward(gy, x, w, needs)
            return found

        return pointwise.backward(gradients, gy, x, w, geometry)


def _length(problem: Problem) -> int:
    return length(problem.transform, problem.shape[0], problem.shape[1])


def _forward(x: Tensor, w: Weight, geometry: Geometry) -> Tensor:
    y: Tensor = kernels("rows").forward(x, w)
    return y
