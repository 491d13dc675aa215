"""w is built for either pass, used and dropped, and so is its gradient."""

from __future__ import annotations

from torch import Tensor

from subspace.products.geometry import Geometry
from subspace.products.parts import matrix
from subspace.products.problem import Problem
from subspace.products.routes.base import Route
from subspace.products.weight import Gradients, Needs, Weight


class Dense(Route):
    """Build w, multiply, drop it."""

    name = "dense"
    layers = "all"
    how = "w is built for the pass, used and dropped, and so is its gradient"

    def supports(self, problem: Problem) -> bool:
        return True

    def counts(self, problem: Problem) -> tuple[float, ...]:
        return 6.0 * problem.entries * problem.rows, problem.moved, problem.entries, 1.0

    def forward(self, x: Tensor, w: Weight, geometry: Geometry) -> Tensor:
        return geometry.multiply(x, matrix.build(w, x))

    def backward(self, gy: Tensor, x: Tensor, w: Weight, geometry: Geometry, needs: Needs) -> Gradients:
        dense = matrix.build(w, x) if needs.x else x.new_empty(w.shape)
        gx, gw = geometry.gradients(gy, x, dense, needs.x, needs.scale or needs.values)
        if gw is None:
            return Gradients(gx, None, None)
        return Gradients(gx, *matrix.read_gradients(gw, w, needs))
