"""y = x w^T with w = scale T + S, which is never saved and by most routes never built."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from subspace.kernels import dense, fast, matrix, native, reference, sparse
from subspace.kernels.costs import Problem
from subspace.kernels.product import Gradients, Needs, Product
from subspace.kernels.router import choose


def linear(
    x: Tensor,
    scale: Tensor | None,
    values: Tensor,
    index: Tensor,
    shape: tuple[int, ...],
    transform: str,
    route: str = "auto",
) -> Tensor:
    """x w^T: (..., n_in) -> (..., n_out), in the dtype of x, or autocast's.

    scale: one element, None if transform is "zero" (else "dct" or "hadamard"); S holds values: (k,) at the flat, sorted
    index: (k,). Raises ValueError for an x of another width, and for a route that cannot do this.
    """
    if x.ndim == 0 or x.shape[-1] != shape[1]:
        raise ValueError(f"x must have a last axis of {shape[1]}, got shape {tuple(x.shape)}")
    return _linear(x, scale, values, index, shape, transform, route)


def routes(x: Tensor, shape: tuple[int, ...], transform: str) -> list[str]:
    """Those that can do this."""
    compiled = native.takes(shape, transform, x)
    return ["dense", "remat", "fft", "native"] if compiled else ["dense", "remat", "fft"]


def problem(x: Tensor, k: int, shape: tuple[int, ...], transform: str) -> Problem:
    """What the choice of a route depends on; k: the nonzeros of S."""
    return Problem("linear", shape, k, transform, tuple(x.shape), x.dtype, x.device.type)


def _resolve(x: Tensor, values: Tensor, shape: tuple[int, ...], transform: str, route: str) -> str:
    possible = routes(x, shape, transform)
    if route not in ("auto", *possible):
        raise ValueError(f"route must be one of {', '.join(['auto', *possible])}, got {route!r}")
    if x.numel() == 0:  # which some FFT libraries refuse
        return "dense"
    return choose(problem(x, len(values), shape, transform), tuple(possible)) if route == "auto" else route


def forward(
    x: Tensor,
    scale: Tensor | None,
    values: Tensor,
    index: Tensor,
    shape: tuple[int, ...],
    transform: str,
    route: str,
) -> Tensor:
    rows = x.reshape(math.prod(x.shape[:-1]), shape[1])
    if route == "native":
        y = native.forward(rows, scale, values, index, shape, transform).to(x.dtype)
    elif route == "fft":
        y = fast.forward(rows, scale, shape, transform)
        sparse.forward(rows, values, index, shape, y)
    else:
        y = F.linear(rows, matrix.weight(scale, values, index, shape, transform, x))
    return y if x.ndim == 2 else y.view(*x.shape[:-1], shape[0])


def backward(
    gy: Tensor,
    x: Tensor,
    scale: Tensor | None,
    values: Tensor,
    index: Tensor,
    needs: Needs,
    shape: tuple[int, ...],
    transform: str,
    route: str,
) -> Gradients:
    rows, grows = (t.reshape(math.prod(x.shape[:-1]), t.shape[-1]) for t in (x, gy))
    if route == "native":
        gradients: Gradients = native.backward(grows, rows, scale, values, index, needs, shape, transform)
        return gradients
    by_bags = functools.partial(sparse.backward, grows, rows, values, index, shape)
    if route == "fft":
        return fast.backward(by_bags, grows, rows, scale, needs, shape, transform)
    what = grows, rows, scale, values, index, needs, shape, transform
    if route == "remat":
        return dense.by_products(_dense, by_bags, *what)
    return dense.by_weight_gradient(_dense, *what)


def _dense(gy: Tensor, x: Tensor, w: Tensor, needs_x: bool, needs_w: bool) -> tuple[Tensor | None, Tensor | None]:
    return gy @ w if needs_x else None, gy.t() @ x if needs_w else None


def _reference(x: Tensor, *arguments: Any) -> Tensor:
    return reference.linear(x, *arguments[:-1])


_linear = Product(
    "linear",
    "int[] shape, str transform, str route",
    forward,
    backward,
    lambda x, shape, transform, route: x.new_empty(*x.shape[:-1], shape[0]),
    _reference,
    _resolve,
)
