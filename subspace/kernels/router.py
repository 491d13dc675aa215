"""Which route is fastest for a product, by the cost model: chosen as it runs, so that no compiled graph sees it."""

from __future__ import annotations

import functools

import torch

from subspace.kernels.costs import Problem, counts


def choose(problem: Problem, possible: tuple[str, ...]) -> str:
    """The route of least predicted time."""
    return _choose(problem, possible, torch.get_num_threads())


@functools.lru_cache(maxsize=4096)
def _choose(problem: Problem, possible: tuple[str, ...], threads: int) -> str:
    return min(possible, key=lambda route: predict(problem, route))


def predict(problem: Problem, route: str) -> float:
    """Seconds of a forward and a backward pass with all gradients."""
    from subspace.kernels.calibration import constants  # which runs the products, and so this

    known = constants(problem.family, problem.dtype, problem.device)[route]
    return sum(each * count for each, count in zip(known, counts(problem, route), strict=True))
