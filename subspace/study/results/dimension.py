"""The intrinsic dimension of one data set, model and method: what was trained, and what follows from it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from subspace.study.results.success_curve import SuccessCurve
from subspace.study.results.threshold_search import Search
from subspace.study.spec.study import Run


@dataclass
class Dimension:
    """run: one of the method's. grid: the dims of the search. target: a share of ordinary training's accuracy.

    ordinary: that accuracy by seed. searches: by seed, what every dim reached as a share of it. failure: why there are
    none.
    """

    run: Run
    grid: Sequence[int]
    target: float
    ordinary: dict[int, float] = field(default_factory=dict)
    searches: Mapping[int, Search] = field(default_factory=dict)
    failure: str = ""

    @cached_property
    def note(self) -> str:
        """What keeps a dim from being found; empty for nothing."""
        if self.failure:
            return self.failure
        goal = f"{100 * self.target:g} % of ordinary training's accuracy"
        thresholds = {seed: search.threshold() for seed, search in self.searches.items()}
        if never := [seed for seed, threshold in thresholds.items() if threshold == math.inf]:
            return f"dims must reach {goal}, got none up to {self.grid[-1]:,} that does at seed {never[0]}"
        if always := [seed for seed, threshold in thresholds.items() if threshold == -math.inf]:
            return f"dims must begin below {goal}, got {self.grid[0]:,} that reaches it at seed {always[0]}"
        return ""

    @cached_property
    def curve(self) -> SuccessCurve | None:
        """The share of seeds that succeed at a dim; None where `note` says why."""
        return None if self.note else SuccessCurve.fit([search.threshold() for search in self.searches.values()])

    @property
    def where(self) -> str:
        """The method, model and data set in words."""
        return f"{self.run.label} of {self.run.model} on {self.run.data}"

    def __str__(self) -> str:
        if self.curve is None:
            return f"{self.where}: {self.note}"
        low, high = self.curve.interval()
        between = f", 95 % interval {low:,.0f} to {high:,.0f}" if self.curve.seeds > 1 else ", of one seed"
        return (
            f"{self.where}: dim {self.curve.dim:,.0f} reaches {100 * self.target:g} % of ordinary training's "
            f"{sum(self.ordinary.values()) / len(self.ordinary):.1%}{between}"
        )

    def row(self) -> dict[str, Any]:
        """What was found, as a row of a table."""
        dim, (low, high) = (self.curve.dim, self.curve.interval()) if self.curve else (math.nan, (math.nan, math.nan))
        return {
            **self._names(),
            "target": self.target,
            "ordinary": sum(self.ordinary.values()) / len(self.ordinary) if self.ordinary else math.nan,
            "dim": dim,
            "low": low,
            "high": high,
            "scale": self.curve.scale if self.curve else math.nan,
            "seeds": len(self.searches),
            "trainings": sum(len(search.found) for search in self.searches.values()),
            "note": self.note,
        }

    def trainings(self) -> Iterator[dict[str, Any]]:
        """Every training as a row of a table, by seed and dim."""
        for seed, search in self.searches.items():
            for place, value in sorted(search.found.items()):
                accuracy = value * self.ordinary[seed]
                reached = {"performance": value, "accuracy": accuracy, "reached": value >= self.target}
                yield {**self._names(), "seed": seed, "dim": self.grid[place], **reached}

    def _names(self) -> dict[str, str]:
        return {"data": str(self.run.data), "model": str(self.run.model), "label": self.run.label}
