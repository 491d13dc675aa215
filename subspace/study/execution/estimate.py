"""What the runs of a study would take, by the times of finished runs."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from subspace.study.entries.entry import canonical
from subspace.study.entries.words import duration
from subspace.study.results.store import Store
from subspace.study.spec.study import SIZES, Run


@dataclass(frozen=True)
class Estimate:
    """Runs and their epochs, `workers` runs at a time; `str()` is for people.

    known: for how many runs the time is known. seconds: of wall time for those, the longest first, without starting the
    workers; several workers slow each other down on most machines, which is not counted.
    """

    runs: int
    epochs: int
    workers: int
    known: int
    seconds: float

    def __str__(self) -> str:
        if not self.runs:
            return "nothing would run: every run is finished"
        time = f"about {duration(self.seconds)}, by finished runs" if self.known else "unknown until a run has finished"
        if 0 < self.known < self.runs:
            time = f"at least {duration(self.seconds)}, by finished runs; unknown for {self.runs - self.known:,} runs"
        what = f"{self.runs:,} run{'s' * (self.runs > 1)}, {self.epochs:,} epochs, {self.workers:,} at a time"
        return f"would run: {what}\ntime: {time}"


def estimate(runs: Sequence[Run], store: Store, workers: int) -> Estimate:
    """What these runs would take: the median time of finished ones that differ in the seed alone, or else in size."""
    exact, alike = ("seed", "version"), ("seed", "version", *SIZES)
    times: dict[str, list[float]] = {}
    for run, seconds in finished(store):
        for apart in (exact, alike):
            times.setdefault(kind(run, apart), []).append(seconds)
    found = (times.get(kind(run, exact)) or times.get(kind(run, alike)) for run in runs)
    known = [median(seconds) for seconds in found if seconds]
    free = [0.0] * max(1, min(workers, len(runs)))
    for seconds in sorted(known, reverse=True):
        heapq.heapreplace(free, free[0] + seconds)
    return Estimate(len(runs), sum(run.epochs for run in runs), len(free), len(known), max(free))


def finished(store: Store) -> Iterable[tuple[Run, float]]:
    """Every finished run in the store that can be read, and its seconds."""
    for path in (store.folder / "runs").glob("*/result.json"):
        try:
            record = json.loads(path.read_bytes())
            if record["status"] == "finished":
                yield Run.parse(record["configuration"]), float(record["metrics"]["seconds"])
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            continue


def kind(run: Run, apart: Iterable[str]) -> str:
    """What runs have in common that differ in these fields alone."""
    return canonical({name: value for name, value in run.configuration().items() if name not in {*apart}})
