"""Who trains the runs of a study: worker processes of this machine, a Ray or Slurm cluster, or the ranks of torchrun.

A launcher is handed runs and hands back jobs. It knows nothing of results: whoever gets a run brings it to its record
in the store (`execution.execute`), which every machine must see under the same path.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from subspace.study.spec.study import Run


class Died(Exception):  # noqa: N818
    """The process or job that had a run ended without bringing it to its end; the message is the cause."""


class Job(Protocol):
    """A run that was handed over."""

    run: Run

    def done(self) -> bool:
        """Whether it has ended, well or not; never waits."""

    def result(self) -> str:
        """What `execute` returned, once it is done. Raises Died, and the StorageError of `execute`."""


class Launcher(AbstractContextManager["Launcher"]):
    """Leaving its block stops what is under way.

    capacity: how many runs it takes at a time; None where it has a queue of its own.
    """

    capacity: int | None = None

    def __exit__(self, *exception: object) -> None:
        """Nothing to stop, unless it is overridden."""

    @abc.abstractmethod
    def submit(self, runs: Sequence[Run]) -> list[Job]:
        """Hand over runs, one job for each in the same order."""

    @abc.abstractmethod
    def wait(self, jobs: Sequence[Job], seconds: float) -> None:
        """Until one of the jobs may have ended, at most so long; at once where there is none."""
