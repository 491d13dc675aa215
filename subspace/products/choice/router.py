"""Which route is fastest for a product, by the cost model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from subspace.products.problem import Problem
from subspace.products.routes.base import Route

Constants = Mapping[str, Sequence[float]]  # seconds per count, by route


def choose(problem: Problem, routes: Sequence[Route], constants: Constants) -> Route:
    """The route of least predicted time."""
    return min(routes, key=lambda route: predict(problem, route, constants))


def predict(problem: Problem, route: Route, constants: Constants) -> float:
    """Seconds of a forward and a backward pass with all gradients; infinity where nothing is known of the route."""
    if route.name not in constants:
        return math.inf
    return sum(each * count for each, count in zip(constants[route.name], route.counts(problem), strict=True))
