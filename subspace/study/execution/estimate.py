"""What the runs of a study would take, before any of them is run: time, memory, disk.

Time: the median of finished runs of the same method, model, data, training and size in the store, then of those of any
size; else some real steps, timed. These are done in a process like those that train, so what it takes to start one and
to load the data is known too, and how much memory it came to hold (`execution.rehearsal`). Runs are then dealt out, the
longest first, to whichever worker is free. Several workers slow each other down on most machines, which is not counted.
"""

from __future__ import annotations

import heapq
import json
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from statistics import median
from typing import TypeAlias

from subspace.study.execution.launchers.interrupts import ignored
from subspace.study.execution.rehearsal import Rehearsal, kind, rehearse
from subspace.study.results.store import Store
from subspace.study.spec.study import Run

Times: TypeAlias = dict[str, list[float]]
ALIKE = ("seed", "version", "density", "dim")


@dataclass(frozen=True)
class Estimate:
    """What so many runs would take with so many workers; `str()` is three lines for people.

    known: for how many the time is that of finished ones. seconds: of wall time, from starting the workers to the last
    record. memory: the bytes of all processes; None where the system does not tell. disk: the bytes of the records that
    stay; under_way: at most as many more meanwhile, for what interrupted runs go on from.
    """

    runs: int
    epochs: int
    workers: int
    known: int
    seconds: float
    memory: int | None
    disk: int
    under_way: int

    def __str__(self) -> str:
        if not self.runs:
            return "nothing would run: every run is finished"
        told = f"{self.known} timed by finished ones, " if self.known else ""
        memory = "not known on this system" if self.memory is None else f"about {size(self.memory)}"
        return "\n".join(
            [
                f"would run: {self.runs:,} runs, {self.epochs:,} epochs in all, {self.workers} at a time",
                f"time: about {duration(self.seconds)} ({told}{self.runs - self.known} by steps timed here)",
                f"memory: {memory}; disk: about {size(self.disk)}, and {size(self.under_way)} meanwhile",
            ]
        )


def estimate(runs: Sequence[Run], store: Store, workers: int) -> Estimate:
    """What these runs would take. Takes some seconds itself, of a process of its own, and trains nothing.

    ValueError with what the first steps of a run raise; ChildProcessError if they end the process, as for its memory.
    """
    if not runs:
        return Estimate(0, 0, workers, 0, 0.0, 0, 0, 0)
    workers = min(workers, len(runs))
    exact, alike = finished(store)
    rehearsed = _rehearsed(runs)
    seconds, known = [], 0
    for run in runs:
        times = exact.get(kind(run)) or alike.get(kind(run, ALIKE))
        known += times is not None
        seconds.append(median(times) if times else rehearsed.seconds(run))
    begin = rehearsed.start + max(rehearsed.loading.values()) + rehearsed.warming
    state = sorted((rehearsed.state(run) for run in runs), reverse=True)[:workers]
    return Estimate(
        runs=len(runs),
        epochs=sum(run.epochs for run in runs),
        workers=workers,
        known=known,
        seconds=begin + packed(seconds, workers),
        memory=rehearsed.memory and rehearsed.memory * (workers + 1),  # the process that hands out runs, too
        disk=sum(rehearsed.record(run) for run in runs),
        under_way=2 * sum(state),  # a new one is whole before the old one goes
    )


def finished(store: Store) -> tuple[Times, Times]:
    """The seconds of all finished runs in the store, by kind, and by kind whatever their size; not of damaged ones."""
    exact: Times = {}
    alike: Times = {}
    for path in (store.folder / "runs").glob("*/result.json"):
        try:
            record = json.loads(path.read_bytes())
            if record["status"] == "finished":
                run, seconds = Run.parse(record["configuration"]), float(record["metrics"]["seconds"])
                exact.setdefault(kind(run), []).append(seconds)
                alike.setdefault(kind(run, ALIKE), []).append(seconds)
        except (OSError, ValueError, LookupError, TypeError):
            continue
    return exact, alike


def packed(seconds: Sequence[float], workers: int) -> float:
    """When the last of so many workers is done, the longest runs first."""
    free = [0.0] * workers
    for each in sorted(seconds, reverse=True):
        heapq.heapreplace(free, free[0] + each)
    return max(free)


def duration(seconds: float) -> str:
    """Seconds in words, in two figures.

    >>> duration(75.2), duration(7300), duration(300_000)
    ('1 min 15 s', '2 h 1 min', '3 d 11 h')
    """
    whole = round(seconds)
    for large, small, unit in (("d", "h", 3600), ("h", "min", 60), ("min", "s", 1)):
        per = 24 if large == "d" else 60
        count, rest = divmod(whole // unit, per)
        if count:
            return f"{count} {large} {rest} {small}"
    return f"{whole} s"


def size(nbytes: float) -> str:
    """Bytes in words.

    >>> size(1_234_567)
    '1.2 MB'
    """
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if nbytes >= scale:
            return f"{nbytes / scale:.1f} {unit}"
    return f"{nbytes:.0f} B"


def _rehearsed(runs: Sequence[Run]) -> Rehearsal:
    """In a process of its own, which ends with it."""
    context = get_context("spawn")
    pipe, end = context.Pipe()
    process = context.Process(target=_rehearse, args=(end, runs, time.time()), daemon=True)
    with ignored(signal.SIGINT):
        process.start()
    end.close()
    try:
        outcome: Rehearsal | Exception = pipe.recv()
    except EOFError:
        raise ChildProcessError("the first steps of every run must be possible here, got a process that died") from None
    finally:
        process.terminate()
        process.join()
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _rehearse(pipe: Connection, runs: Sequence[Run], began: float) -> None:
    try:
        pipe.send(rehearse(runs, began))
    except Exception as error:
        told = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        pipe.send(ValueError(told))  # which can be pickled, whatever it was
