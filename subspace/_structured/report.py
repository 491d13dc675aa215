"""The route that every layer of a structured model takes for an input, and what each costs, predicted and measured."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from subspace._base.preserve import preserved
from subspace._base.text import html, table
from subspace._structured.forward import is_structured, products_of
from subspace._structured.normal_form import NormalForm
from subspace.parametrization import Subspace, subspaces
from subspace.products.choice.calibration import time_routes
from subspace.products.choice.router import predict
from subspace.products.choice.selection import constants, possible, select
from subspace.products.layers import as_product
from subspace.products.native.load import status
from subspace.products.problem import Problem


@dataclass(frozen=True)
class Route:
    """One layer: its weight's name and shape, its input's shape, the route taken ("product": that of d and U's own).

    predicted, measured: seconds of a forward and a backward pass with all gradients by every possible route.
    """

    name: str
    shape: tuple[int, ...]
    x_shape: tuple[int, ...]
    route: str
    predicted: dict[str, float]
    measured: dict[str, float]


@dataclass(frozen=True)
class Routes:
    """The rows, in the order of the forward pass; `str()`, and what a notebook shows, is a table in milliseconds."""

    rows: tuple[Route, ...]

    def __str__(self) -> str:
        lines, head = self._lines()
        return "\n".join([*table(lines, "<<<<" + ">" * (len(lines[0]) - 4)), head])

    def _repr_html_(self) -> str:
        lines, head = self._lines()
        return html(lines, [head])

    def _lines(self) -> tuple[list[list[str]], str]:
        """The table, and what its numbers are."""
        routes = list(dict.fromkeys(route for row in self.rows for route in row.predicted))
        lines = [["tensor", "shape", "input", "route", *routes]]
        for row in self.rows:
            times = [_times(row.predicted.get(route), row.measured.get(route)) for route in routes]
            lines.append(
                [row.name, " x ".join(map(str, row.shape)), " x ".join(map(str, row.x_shape)), row.route, *times]
            )
        return lines, f"milliseconds forward and backward, predicted / measured; compiled kernels: {status()}"


def routes(model: nn.Module, *inputs: Any, measure: bool = True) -> Routes:
    """Report the routes that the structured layers of a model take for an input.

    Args:
        model: With structured layers; it stays as it is.
        inputs: The routes are those of model(*inputs).
        measure: Whether to time every possible route of every different problem, which takes some passes of each.

    Returns:
        A row for each call of a layer, in the order of the forward pass; `str()` is a table in milliseconds.

    Raises:
        ValueError: If no layer is structured.
    """
    spaces = {name: space for name, space in subspaces(model) if is_structured(space.module)}
    if not spaces:
        raise ValueError("model must have a structured layer, got none: call structured(model) first")
    seen: list[tuple[str, Subspace, Tensor]] = []

    def read(name: str, space: Subspace, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((name, space, next(iter([*args, *kwargs.values()]))))

    hooks = [s.module.register_forward_pre_hook(partial(read, n, s), with_kwargs=True) for n, s in spaces.items()]
    try:
        with preserved(model), torch.no_grad():
            model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    times: dict[Problem, dict[str, float]] = {}
    return Routes(tuple(_row(name, space, x, times if measure else None) for name, space, x in seen))


def _row(name: str, space: Subspace, x: Tensor, times: dict[Problem, dict[str, float]] | None) -> Route:
    shape, products = tuple(space.parametrization.offset.shape), products_of(space.module)
    if products is None or products.form is None:
        taken = "dense" if products is not None and products.builds(space.parametrization, x) else "product"
        return Route(name, shape, tuple(x.shape), taken, {}, {})
    problem = _problem(space, products.form, x)
    usable, known = possible(problem), constants(problem)
    if times is not None and problem not in times:
        times[problem] = time_routes(usable, problem)
    predicted = {route.name: predict(problem, route, known) for route in usable}
    measured = {} if times is None else times[problem]
    return Route(name, shape, tuple(x.shape), select(problem, products.route).name, predicted, measured)


def _problem(space: Subspace, form: NormalForm, x: Tensor) -> Problem:
    w = form(space.theta.detach())
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    seen, geometry = as_product(space.module, x)  # type: ignore[arg-type]
    return Problem.of(seen, w, geometry)


def _times(predicted: float | None, measured: float | None) -> str:
    return "" if predicted is None else " / ".join(f"{1e3 * t:.2f}" for t in (predicted, measured) if t is not None)
