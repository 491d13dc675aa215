"""Runs in worker processes of this machine: the default launcher."""

from __future__ import annotations

from collections.abc import Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import cast

from subspace.study.execution.execute import Task
from subspace.study.execution.launchers import Died, Job, Launcher
from subspace.study.execution.launchers.worker import Worker
from subspace.study.spec.study import Run
from subspace.study.training.run import train


class PoolJob:
    """A run that a worker has."""

    def __init__(self, run: Run, worker: Worker, idle: list[Worker]) -> None:
        self.run, self.worker, self.idle = run, worker, idle

    def done(self) -> bool:
        """Whether the worker has answered, or died."""
        return self.worker.pipe.poll()

    def result(self) -> str:
        """As `execute`; the worker is then free for another run."""
        try:
            result = self.worker.result()
        except ChildProcessError as error:
            raise Died(str(error)) from None
        self.idle.append(self.worker)
        return result


class Pool(Launcher):
    """So many worker processes, each with the threads of its run; made when they are needed, and used again."""

    def __init__(self, folder: Path, workers: int, task: Task = train) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        self.folder, self.capacity, self.task = folder, workers, task
        self.crew: list[Worker] = []
        self.idle: list[Worker] = []

    def __exit__(self, *exception: object) -> None:
        for worker in self.crew:
            worker.stop()

    def submit(self, runs: Sequence[Run]) -> list[Job]:
        """Hand every run to a worker that has none."""
        jobs: list[Job] = []
        for run in runs:
            while self.idle and not self.idle[-1].process.is_alive():
                self.idle.pop()
            if not self.idle:
                self.crew.append(Worker(self.folder, self.task))
                self.idle.append(self.crew[-1])
            worker = self.idle.pop()
            worker.start(run)
            jobs.append(PoolJob(run, worker, self.idle))
        return jobs

    def wait(self, jobs: Sequence[Job], seconds: float) -> None:
        """Until a worker answers or dies, at most so long."""
        wait([cast("PoolJob", job).worker.pipe for job in jobs], seconds)
