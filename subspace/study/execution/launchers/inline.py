"""Runs in the calling process, one after another: for debuggers, and where no process may be started."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from subspace.study.execution.execute import Task, execute
from subspace.study.execution.launchers import Job, Launcher
from subspace.study.spec.study import Run
from subspace.study.training.run import train


class InlineJob:
    """A run that has ended."""

    def __init__(self, run: Run, outcome: str) -> None:
        self.run, self.outcome = run, outcome

    def done(self) -> bool:
        """True."""
        return True

    def result(self) -> str:
        """What `execute` returned."""
        return self.outcome


class Inline(Launcher):
    """One run at a time, in this process; `submit` returns when it has ended."""

    capacity = 1

    def __init__(self, folder: Path, task: Task = train) -> None:
        self.folder, self.task = folder, task

    def submit(self, runs: Sequence[Run]) -> list[Job]:
        """Train them."""
        return [InlineJob(run, execute(run, self.folder, self.task)) for run in runs]

    def wait(self, jobs: Sequence[Job], seconds: float) -> None:
        """There is nothing to wait for."""
