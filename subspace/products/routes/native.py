"""The compiled kernels: fast transforms of the channels at every row or pixel, and convolutions by thin factors."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from subspace.products.form import Layout
from subspace.products.geometry import Geometry
from subspace.products.native import conv, load, rows
from subspace.products.parts import pointwise
from subspace.products.parts.factors import rank
from subspace.products.problem import Problem
from subspace.products.routes.base import Bound, Route
from subspace.products.routes.fft import transform_counts
from subspace.products.weight import Gradients, Needs, Weight


class Native(Route):
    """Call the compiled kernels."""

    name = "native"
    layers = "all"
    how = "compiled kernels, on a CPU; of several taps for contiguous float32, stride 1 and no groups"

    def supports(self, problem: Problem) -> bool:
        if problem.device != "cpu" or problem.dtype == torch.float64 or not load.is_available():
            return False
        if problem.transform == "given":
            return False
        if problem.geometry.is_pointwise:
            return problem.transform != "dct" or rows.is_fast_length(max(problem.shape[0], problem.shape[1]))
        plain = problem.dtype == torch.float32 and len(problem.shape) == 4 and not problem.channels_last
        simple = set(problem.geometry.stride) == {1} and problem.geometry.groups == 1
        return plain and simple and problem.transform != "hadamard"

    def counts(self, problem: Problem) -> tuple[float, ...]:
        if problem.geometry.is_pointwise:
            return transform_counts(problem)
        n_out, channels = problem.shape[:2]
        r, pixels = rank(problem), problem.rows
        flops, turned = 4.0 * pixels * (r * channels + 2 * r * n_out), pixels * problem.taps * n_out * bool(r)
        return flops, turned, problem.moved, problem.k * pixels, problem.k, 1.0

    def forward(self, x: Tensor, w: Weight, geometry: Geometry) -> Tensor:
        if geometry.is_pointwise:
            y = pointwise.forward(rows.forward, x, w, geometry)
            return y if y.dtype == x.dtype else y.to(x.dtype)
        return conv.forward(x, w, geometry)

    def backward(self, gy: Tensor, x: Tensor, w: Weight, geometry: Geometry, needs: Needs) -> Gradients:
        if geometry.is_pointwise:
            return pointwise.backward(functools.partial(rows.backward, needs=needs), gy, x, w, geometry)
        return conv.backward(gy, x, w, geometry, needs)

    def bind(self, problem: Problem, layout: Layout, w: Weight) -> Bound | None:
        stride, padding = problem.geometry.stride, problem.geometry.padding
        if not problem.geometry.is_pointwise:
            return conv.bind(problem, layout, w.index)
        if set(stride) <= {1} and not any(padding):  # every pixel as it is
            return rows.bind(problem, layout, w.index)
        return None
