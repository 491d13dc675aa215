"""Products of a layer with all worked out but the numbers: what is the same at every call is found at the first.

A bound product reads theta where it lies. It is for one shape and memory format of x, one geometry, one number of
threads and one version of the index: for any other, another is made. Where theta is not float32 on the CPU, and for
routes that bind nothing, there is none, and products go by `Route.forward` and `Route.backward`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from subspace.products.choice.selection import select
from subspace.products.form import Layout, VectorForm
from subspace.products.geometry import Geometry, memory_format
from subspace.products.problem import Problem
from subspace.products.routes.base import Bound
from subspace.products.sparse_index import Version, checked, version
from subspace.products.weight import Weight

PLAIN = (Tensor, nn.Parameter)
MOST = 64  # kinds of x that a layer remembers


class Binding(NamedTuple):
    """A bound product, what it is for, and how images and y lie. fixed: index, signs and matrix of its weight."""

    bound: Bound
    fixed: tuple[Tensor, None, Tensor | None]
    shapes: tuple[torch.Size, torch.Size]  # of x and theta
    format: torch.memory_format
    y_size: tuple[int, ...]
    y_stride: tuple[int, ...]

    def forward(self, x: Tensor, theta: Tensor) -> Tensor:
        """w x."""
        y = x.new_empty_strided(self.y_size, self.y_stride)
        self.bound.forward(x, theta, y)
        return y

    def backward(
        self, gy: Tensor, x: Tensor, numbers: Sequence[Tensor], needs: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        """The gradients to x and theta, None where not needed; saved tensors may come back from hooks on them."""
        (theta,) = numbers
        if (x.shape, theta.shape) != self.shapes:
            raise ValueError(
                f"saved tensors must come back in their shapes, got {tuple(x.shape)}, {tuple(theta.shape)}"
            )
        gy, x = (t.float().contiguous(memory_format=self.format) for t in (gy, x))
        theta = theta.float().contiguous()
        gx = torch.empty_like(x) if needs[0] else None
        gtheta = torch.empty_like(theta) if needs[1] else None
        self.bound.backward(gy, x, theta, gx, gtheta)
        return gx, gtheta


class _Found(NamedTuple):
    """What was found for a matrix and an index when it was at a version: None where no product can be bound."""

    index: Tensor  # type: ignore[assignment]  # which hides tuple's method, that nobody needs
    matrix: Tensor | None
    version: Version | None
    binding: Binding | None


def _is_plain(tensor: Tensor) -> bool:
    return tensor.dtype is torch.float32 and tensor.is_cpu and type(tensor) in PLAIN


class Bindings:
    """The bound products of one layer, by kind of x; a copy or pickle is empty, for they hold addresses."""

    def __init__(self, form: VectorForm) -> None:
        self.form = form
        self._found: dict[Hashable, _Found] = {}

    def find(self, x: Tensor, theta: Tensor, geometry: Geometry, name: str) -> Binding | None:
        """That for this x by the route of that name, or the fastest; None where there is none."""
        layout = self.form.layout
        if layout is None or not (x.dtype is torch.float32 and x.is_cpu and _is_plain(theta)):
            return None
        index, matrix = self.form.index(), self.form.matrix()
        if index.is_inference() or not (matrix is None or _is_plain(matrix)):  # an index that counts no versions
            return None
        kind = x.shape, x.stride(), theta.shape, theta.stride(), geometry, name, torch.get_num_threads()
        found = self._found.get(kind)
        same = found is not None and found.index is index and found.matrix is matrix
        if found is None or not same or found.version != version(index):
            if len(self._found) >= MOST:
                self._found.clear()
            w = self.form(theta)._replace(index=index)
            now = checked(index, w.values.shape[0], math.prod(w.shape))
            found = self._found[kind] = _Found(index, matrix, now, self._bind(x, theta, w, layout, geometry, name))
        return found.binding

    def _bind(
        self, x: Tensor, theta: Tensor, w: Weight, layout: Layout, geometry: Geometry, name: str
    ) -> Binding | None:
        form = memory_format(x) if geometry.kernel else torch.contiguous_format
        if tuple(theta.shape) != (layout.dim,) or not theta.is_contiguous():
            return None
        if not x.is_contiguous(memory_format=form):
            return None
        problem = Problem.of(x, w, geometry)
        bound = select(problem, name).bind(problem, layout, w)
        if bound is None:
            return None
        size = *x.shape[:-1], w.shape[0]
        if geometry.kernel:
            size = x.shape[0], w.shape[0], *geometry.sizes(tuple(x.shape[2:]))
        stride = torch.empty(size, device="meta").contiguous(memory_format=form).stride()
        return Binding(bound, (w.index, None, w.matrix), (x.shape, theta.shape), form, size, stride)

    def __reduce__(self) -> tuple[type[Bindings], tuple[VectorForm]]:
        return Bindings, (self.form,)
