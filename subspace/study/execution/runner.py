"""Carry out a grid: runs with a result are skipped, the long runs come first, and a failure stops nothing else.

Workers write results to the store (`execute`); this module only watches it. So it does not matter which machine trains,
nor whether another process carries out the same study.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable

from subspace.study.execution.callbacks import Callback
from subspace.study.execution.execute import attempts, make_record, read_or_set_aside
from subspace.study.execution.launchers import Job, Launcher, WorkerDied
from subspace.study.results.store import Store
from subspace.study.spec.study import Run

ATTEMPTS = 2
LOOK = 0.2  # seconds between two looks at the store
ELSEWHERE = 2.0  # seconds between two looks at a run that another process trains


def unfinished(runs: Iterable[Run], store: Store, callback: Callback, retry: bool = False) -> list[Run]:
    """The runs that are to be trained; damaged results are set aside with a message.

    A failed run is tried `ATTEMPTS` times, and with `retry` once more. Raises NewerSchemaError, and StorageError.
    """

    def say(text: str) -> None:
        callback.say(f"{text}, and run again")

    missing = []
    for run in runs:
        record = None
        if store.path(run).exists():
            with store.held(run) as mine:
                record = read_or_set_aside(store, run, say) if mine else None
        if record is None or (record["status"] == "failed" and (retry or attempts(record) < ATTEMPTS)):
            missing.append(run)
    return missing


def carry_out(
    runs: Iterable[Run], store: Store, launcher: Launcher, callback: Callback, elsewhere: float = ELSEWHERE
) -> None:
    """Train runs until each has a result. On a StorageError, stop; interrupted runs can be resumed."""
    with launcher:
        Runner(store, launcher, callback, elsewhere).carry_out(runs)


class Runner:
    """Which runs wait, which are being trained, and which another process trains."""

    def __init__(self, store: Store, launcher: Launcher, callback: Callback, patience: float) -> None:
        self.store, self.launcher, self.callback, self.patience = store, launcher, callback, patience
        self.waiting: deque[Run] = deque()
        self.running: dict[Job, int] = {}  # and how many of its epochs were reported
        self.elsewhere: dict[Run, float] = {}  # and when it was looked at last

    def carry_out(self, runs: Iterable[Run]) -> None:
        """Train the runs, the longest first."""
        self.waiting.extend(sorted(runs, key=lambda run: -run.cost))
        while self.waiting or self.running or self.elsewhere:
            self.submit()
            self.launcher.wait(list(self.running), LOOK)
            if not self.running:
                time.sleep(LOOK)
            for job in list(self.running):
                self.watch(job)
            for run, looked in list(self.elsewhere.items()):
                if time.monotonic() - looked > self.patience:
                    self.check_elsewhere(run)

    def submit(self) -> None:
        """Submit as many runs as the launcher takes."""
        capacity = self.launcher.capacity
        free = len(self.waiting) if capacity is None else min(len(self.waiting), capacity - len(self.running))
        runs = [self.waiting.popleft() for _ in range(free)]
        for run in runs:
            self.callback.begin(run)
        for job in self.launcher.submit(runs) if runs else ():
            self.running[job] = 0

    def watch(self, job: Job) -> None:
        """Report the epochs of a job, and its end."""
        done, run = job.done(), job.run  # in this order, so that no epoch is missed
        epochs = self.store.progress(run)
        for figures in epochs[self.running[job] :]:
            self.callback.epoch(run, figures)
        self.running[job] = len(epochs)
        if not done:
            return
        del self.running[job]
        try:
            result = job.result()
        except WorkerDied as cause:
            result = self.record_death(run, str(cause))
        if result == "elsewhere":
            self.callback.say(f"{run}: another process trains it, and its result will be used")
            self.elsewhere[run] = time.monotonic()
        else:
            self.close(run)

    def record_death(self, run: Run, cause: str) -> str:
        """Record that a run's worker died, unless the run has a result all the same."""
        with self.store.held(run) as mine:
            if not mine:
                return "elsewhere"
            record = read_or_set_aside(self.store, run, self.callback.say)
            if record is None or record["status"] == "failed":
                self.store.write(run, make_record(None, cause, number=attempts(record) + 1))
        return "ended"

    def close(self, run: Run) -> None:
        """Report the run's record; try again if it failed for the first time."""
        with self.store.held(run) as mine:
            record = read_or_set_aside(self.store, run, self.callback.say) if mine else None
        if record is None:
            self.elsewhere[run] = time.monotonic()
        elif record["status"] == "failed" and attempts(record) < ATTEMPTS:
            self.callback.say(f"{run} failed, and is tried once more: {record['error']}")
            self.waiting.appendleft(run)
        else:
            self.callback.end(run, record)

    def check_elsewhere(self, run: Run) -> None:
        """Close the run, or take it over, once no other process holds its lock."""
        self.elsewhere[run] = time.monotonic()
        with self.store.held(run) as mine:
            if not mine:
                return
            record = read_or_set_aside(self.store, run, self.callback.say)
        del self.elsewhere[run]
        if record is None:
            self.waiting.append(run)
        else:
            self.close(run)
