"""A given T and S apart: torch's own product with T as it is held, and the sparse part beside it; w is never built."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from subspace.products.form import Layout
from subspace.products.geometry import Geometry
from subspace.products.native import load, rows
from subspace.products.parts import sparse
from subspace.products.parts.combine import combine, times
from subspace.products.problem import Problem
from subspace.products.routes.base import Bound, Route
from subspace.products.weight import Gradients, Needs, Weight


class Apart(Route):
    """Multiply by T and by S, and add."""

    name = "apart"
    layers = "all, of a d that is held (pretrained)"
    how = "torch's own product with d, that of the sparse part beside it; w is never built"

    def supports(self, problem: Problem) -> bool:
        return problem.transform == "given"

    def counts(self, problem: Problem) -> tuple[float, ...]:
        rows = problem.rows
        return 4.0 * problem.entries * rows, problem.moved, problem.k * rows, problem.k, 1.0

    def forward(self, x: Tensor, w: Weight, geometry: Geometry) -> Tensor:
        t, scale = _given(w, x)
        y = times(geometry.multiply(x, t), scale)
        if _is_native(x, w, geometry):
            y += rows.forward(x, _sparse(w), geometry).to(y.dtype)
        else:
            sparse.forward(x, w, geometry, y)
        return y

    def bind(self, problem: Problem, layout: Layout, w: Weight) -> Bound | None:
        if w.matrix is None or layout.at is not None or problem.geometry.kernel:
            return None
        if not (problem.k and load.is_available()):
            return None
        beside = rows.bind(problem._replace(transform="zero"), layout, w.index)
        return BoundApart(w.matrix, layout.fixed, beside)

    def backward(self, gy: Tensor, x: Tensor, w: Weight, geometry: Geometry, needs: Needs) -> Gradients:
        t, _ = _given(w, x)
        product = geometry.gradients(gy, x, t, True, False)[0] if needs.x or needs.scale else None
        if not _is_native(x, w, geometry):
            return combine(product, gy, x, w, geometry, needs)
        found = combine(product, gy, x, _nothing(w), geometry, needs._replace(values=False))
        beside = rows.backward(gy, x, _sparse(w), geometry, needs._replace(scale=False))
        gx = None if found.x is None or beside.x is None else found.x.add_(beside.x)
        return Gradients(gx, found.scale, beside.values)


class BoundApart(NamedTuple):
    """The product of rows, bound to theta: that with S by the compiled kernel, and torch's own with scale T added."""

    matrix: Tensor
    scale: float
    sparse: Bound

    def forward(self, x: Tensor, theta: Tensor, y: Tensor) -> None:
        """Write w x into y."""
        self.sparse.forward(x, theta, y)
        _rows(y).addmm_(_rows(x), self.matrix.t(), alpha=self.scale)

    def backward(self, gy: Tensor, x: Tensor, theta: Tensor, gx: Tensor | None, gtheta: Tensor | None) -> None:
        """Write the gradients, each where wanted."""
        self.sparse.backward(gy, x, theta, gx, gtheta)
        if gx is not None:
            _rows(gx).addmm_(_rows(gy), self.matrix, alpha=self.scale)


def _rows(t: Tensor) -> Tensor:
    return t if t.ndim == 2 else t.view(-1, t.shape[-1])


def _given(w: Weight, x: Tensor) -> tuple[Tensor, Tensor]:
    if w.matrix is None or w.scale is None:
        raise ValueError(f"a {w.transform} transform has no matrix that is given")
    return w.matrix.to(x.dtype), w.scale


def _is_native(x: Tensor, w: Weight, geometry: Geometry) -> bool:
    """Whether S goes by the compiled kernel for rows."""
    usable = x.device.type == "cpu" and x.dtype != torch.float64 and load.is_available()
    return usable and not geometry.kernel and len(w.values) > 0


def _sparse(w: Weight) -> Weight:
    return w._replace(scale=None, transform="zero", matrix=None)


def _nothing(w: Weight) -> Weight:
    return w._replace(values=w.values[:0], index=w.index[:0])
