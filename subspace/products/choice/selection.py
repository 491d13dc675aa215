"""The route that a product takes: that of a name, or the fastest."""

from __future__ import annotations

import functools

import torch

from subspace.products.choice import calibration, router
from subspace.products.problem import Problem
from subspace.products.routes import DENSE, ROUTES, Route


def possible(problem: Problem) -> list[Route]:
    """The routes that can compute it."""
    return [route for route in ROUTES if route.supports(problem)]


def constants(problem: Problem) -> router.Constants:
    """Seconds per count of the routes that can compute it."""
    return calibration.constants(ROUTES, problem.family, problem.dtype, problem.device)


def select(problem: Problem, name: str = "auto") -> Route:
    """The route of that name, the fastest by the cost model for "auto"; ValueError if it cannot compute it."""
    return _select(problem, name, torch.get_num_threads())


@functools.lru_cache(maxsize=4096)
def _select(problem: Problem, name: str, threads: int) -> Route:
    found = {route.name: route for route in possible(problem)}
    if name not in ("auto", *found):
        raise ValueError(f"route must be one of {', '.join(['auto', *found])}, got {name!r}")
    if 0 in problem.x_shape:  # which some FFT libraries refuse
        return DENSE
    return found[name] if name != "auto" else router.choose(problem, list(found.values()), constants(problem))
