"""The share of seeds that succeed at a dim: a logistic curve in log dim, and an interval for its middle.

Every seed has a threshold, the log of the least dim at which it succeeds. Seeds are independent, and their thresholds
are taken to be logistic; half of them succeed at the dim that the curve has its middle at. The curve is fitted by the
mean and the standard deviation of the thresholds. Its interval is a parametric bootstrap over seeds: as many thresholds
as there are seeds are drawn from the fitted curve, again and again, and middle and scale are found anew. Their ratio
does not depend on the curve (logistic curves differ by a shift and a scale), so the interval covers what it says
whatever the number of seeds, where percentiles of resampled seeds would cover three quarters at three seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

DRAWS = 20_000  # of the bootstrap


@dataclass(frozen=True)
class SuccessCurve:
    """P(success at dim) = 1 / (1 + exp(-(log dim - middle) / scale)), fitted to the thresholds of so many seeds."""

    middle: float
    scale: float
    seeds: int

    @classmethod
    def fit(cls, thresholds: Sequence[float]) -> SuccessCurve:
        """The curve of these logs of dims, one for each seed; of one seed its scale is nan."""
        if not thresholds:
            raise ValueError("thresholds must be of at least one seed, got none")
        spread = float(np.std(thresholds, ddof=1)) if len(thresholds) > 1 else math.nan
        return cls(float(np.mean(thresholds)), spread * math.sqrt(3) / math.pi, len(thresholds))

    @property
    def dim(self) -> float:
        """The dim at which half of the seeds succeed."""
        return math.exp(self.middle)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The dims between which that one is, with this confidence; nan for one seed."""
        half = _half_width(self.seeds, level) * self.scale if self.seeds > 1 else math.nan
        return math.exp(self.middle - half), math.exp(self.middle + half)

    def share(self, dim: float) -> float:
        """The share of seeds that succeed at a dim."""
        if self.scale > 0:
            return float(1 / (1 + np.exp(-np.clip((math.log(dim) - self.middle) / self.scale, -500, 500))))
        return float(math.log(dim) >= self.middle)


@lru_cache
def _half_width(seeds: int, level: float) -> float:
    """Half the interval's width in scales: the bootstrap's quantile of |middle of the draws| / their scale."""
    draws = np.random.default_rng(0).logistic(size=(DRAWS, seeds))
    scales = draws.std(axis=1, ddof=1) * math.sqrt(3) / math.pi
    return float(np.quantile(np.abs(draws.mean(axis=1)) / scales, level))
