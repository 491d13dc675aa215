"""Runs in worker processes of this machine: the default launcher."""

from __future__ import annotations

from collections.abc import Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import cast

from subspace.study.execution.execute import Task
from subspace.study.execution.launchers import Job, Launcher, WorkerDied
from subspace.study.execution.launchers.worker import Worker
from subspace.study.spec.study import Run
from subspace.study.training.run import train


class PoolJob:
    """A run that a worker trains."""

    def __init__(self, run: Run, worker: Worker, idle: list[Worker]) -> None:
        self.run, self.worker, self.idle = run, worker, idle

    def done(self) -> bool:
        """Whether the worker has answered, or died."""
        return self.worker.pipe.poll()

    def result(self) -> str:
        """What `execute` returned; the worker is then free for another run."""
        try:
            result = self.worker.result()
        except ChildProcessError as error:
            raise WorkerDied(str(error)) from None
        self.idle.append(self.worker)
        return result


class Pool(Launcher):
    """At most `workers` processes, started when they are needed and used again; method: as of `Worker`."""

    def __init__(self, folder: Path, workers: int, task: Task = train, method: str = "spawn") -> None:
        if not isinstance(workers, int) or workers < 1:
            raise ValueError(f"workers must be an integer of at least 1, got {workers!r}")
        self.folder, self.capacity, self.task, self.method = folder, workers, task, method
        self.workers: list[Worker] = []
        self.idle: list[Worker] = []

    def __exit__(self, *exception: object) -> None:
        for worker in self.workers:
            worker.stop()

    def submit(self, runs: Sequence[Run]) -> list[Job]:
        """Send every run to a worker that has none."""
        jobs: list[Job] = []
        for run in runs:
            while self.idle and not self.idle[-1].process.is_alive():
                self.idle.pop()
            if not self.idle:
                self.workers.append(Worker(self.folder, self.task, self.method))
                self.idle.append(self.workers[-1])
            worker = self.idle.pop()
            worker.start(run)
            jobs.append(PoolJob(run, worker, self.idle))
        return jobs

    def wait(self, jobs: Sequence[Job], seconds: float) -> None:
        """Until a worker answers or dies, at most `seconds`."""
        wait([cast("PoolJob", job).worker.pipe for job in jobs], seconds)
