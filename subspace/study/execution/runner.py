"""Carrying out a grid: what is finished is skipped, the long runs come first, and a failure stops nothing else.

Whoever trains a run brings it to its record in the store (`execute`); here the store is only watched, so it does
not matter which machine trains, nor whether another process is at the same study.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable

from subspace.study.execution.callbacks import Callback
from subspace.study.execution.execute import attempts, intact, outcome
from subspace.study.execution.launchers import Died, Job, Launcher
from subspace.study.results.store import Store
from subspace.study.spec.study import Run

ATTEMPTS = 2
LOOK = 0.2  # seconds between two looks at the store
ELSEWHERE = 2.0  # and at a run that another process is at


def unfinished(runs: Iterable[Run], store: Store, callback: Callback, retry: bool = False) -> list[Run]:
    """The runs without a record that is their last; damaged files are set aside with a message.

    A failed run is tried `ATTEMPTS` times, and with `retry` once more. Raises NewerSchemaError, and StorageError.
    """
    missing = []
    for run in runs:
        record = None
        if store.path(run).exists():
            with store.held(run) as mine:
                record = intact(store, run, lambda text: callback.say(f"{text}, and run again")) if mine else None
        if record is None or (record["status"] == "failed" and (retry or attempts(record) < ATTEMPTS)):
            missing.append(run)
    return missing


def carry_out(runs: Iterable[Run], store: Store, launcher: Launcher, callback: Callback) -> None:
    """Bring every run to its record. StorageError ends it; what is under way is stopped, and can be gone on with."""
    with launcher:
        Runner(store, launcher, callback).carry_out(runs)


class Runner:
    """What waits, what is under way, and what another process is at."""

    def __init__(self, store: Store, launcher: Launcher, callback: Callback) -> None:
        self.store, self.launcher, self.callback = store, launcher, callback
        self.waiting: deque[Run] = deque()
        self.under_way: dict[Job, int] = {}  # and how many epochs of it were reported
        self.elsewhere: dict[Run, float] = {}  # and when it was looked at last

    def carry_out(self, runs: Iterable[Run]) -> None:
        """Bring every run to its record, the longest first."""
        self.waiting.extend(sorted(runs, key=lambda run: -run.cost))
        while self.waiting or self.under_way or self.elsewhere:
            self.submit()
            self.launcher.wait(list(self.under_way), LOOK)
            if not self.under_way:
                time.sleep(LOOK)
            for job in list(self.under_way):
                self.watch(job)
            for run, looked in list(self.elsewhere.items()):
                if time.monotonic() - looked > ELSEWHERE:
                    self.look(run)

    def submit(self) -> None:
        """Hand over as much as the launcher takes."""
        capacity = self.launcher.capacity
        free = len(self.waiting) if capacity is None else min(len(self.waiting), capacity - len(self.under_way))
        runs = [self.waiting.popleft() for _ in range(free)]
        for run in runs:
            self.callback.begin(run)
        for job in self.launcher.submit(runs) if runs else ():
            self.under_way[job] = 0

    def watch(self, job: Job) -> None:
        """Report the epochs of a job, and its end."""
        done, run = job.done(), job.run  # in this order, so that no epoch is missed
        epochs = self.store.progress(run)
        for figures in epochs[self.under_way[job] :]:
            self.callback.epoch(run, figures)
        self.under_way[job] = len(epochs)
        if not done:
            return
        del self.under_way[job]
        try:
            result = job.result()
        except Died as cause:
            result = self.bury(run, str(cause))
        if result == "elsewhere":
            self.callback.say(f"{run}: another process is at it, and its result will be taken")
            self.elsewhere[run] = time.monotonic()
        else:
            self.settle(run)

    def bury(self, run: Run, cause: str) -> str:
        """Record that whoever had the run died, unless it has a result all the same."""
        with self.store.held(run) as mine:
            if not mine:
                return "elsewhere"
            record = intact(self.store, run, self.callback.say)
            if record is None or record["status"] == "failed":
                self.store.write(run, outcome(None, cause, number=attempts(record) + 1))
        return "ended"

    def settle(self, run: Run) -> None:
        """Tell of the run's record; one more attempt if it failed for the first time."""
        with self.store.held(run) as mine:
            record = intact(self.store, run, self.callback.say) if mine else None
        if record is None:
            self.elsewhere[run] = time.monotonic()
        elif record["status"] == "failed" and attempts(record) < ATTEMPTS:
            self.callback.say(f"{run} failed, and is tried once more: {record['error']}")
            self.waiting.appendleft(run)
        else:
            self.callback.end(run, record)

    def look(self, run: Run) -> None:
        """Whether the process that had the run has come to its end, or died."""
        self.elsewhere[run] = time.monotonic()
        with self.store.held(run) as mine:
            if not mine:
                return
        del self.elsewhere[run]
        if intact(self.store, run, self.callback.say) is None:
            self.waiting.append(run)
        else:
            self.settle(run)
