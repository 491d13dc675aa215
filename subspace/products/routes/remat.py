"""w is built again for the backward pass, but never its gradient."""

from __future__ import annotations

from torch import Tensor

from subspace.products.geometry import Geometry
from subspace.products.parts import matrix, sparse
from subspace.products.parts.combine import combine
from subspace.products.problem import Problem
from subspace.products.routes.base import Route
from subspace.products.weight import Gradients, Needs, Weight


class Remat(Route):
    """Build w for either pass; sample the gradients of theta."""

    name = "remat"
    layers = "all"
    how = "w is built for either pass; gradients of theta by sampled products"

    def supports(self, problem: Problem) -> bool:
        return True

    def counts(self, problem: Problem) -> tuple[float, ...]:
        entries, rows = problem.entries, problem.rows
        return 4.0 * entries * rows, problem.moved, entries, problem.k * rows, 1.0

    def forward(self, x: Tensor, w: Weight, geometry: Geometry) -> Tensor:
        return geometry.multiply(x, matrix.build(w, x))

    def backward(self, gy: Tensor, x: Tensor, w: Weight, geometry: Geometry, needs: Needs) -> Gradients:
        """Without the gradient to w: <x, T^T gy> for the scale, the sparse part's own dot products for the values."""
        if w.scale is not None and needs.scale:
            t = matrix.transform_of(w, x).to(x.dtype)
            product, _ = geometry.gradients(gy, x, t, True, False)
            return combine(product, gy, x, w, geometry, needs)
        gx = geometry.gradients(gy, x, matrix.build(w, x), True, False)[0] if needs.x else None
        return Gradients(gx, None, sparse.backward(gy, x, w, geometry, None, True) if needs.values else None)
