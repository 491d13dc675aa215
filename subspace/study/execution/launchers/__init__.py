"""Who trains the runs of a study: this process, worker processes of this machine, a Ray or a Slurm cluster.

A launcher is given runs and returns jobs. It knows nothing of results: the process that trains a run writes its result
to the store (`execution.execute`), which every machine must see under the same path.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from subspace.study.entries.lookup import lookup, require_known
from subspace.study.execution.environment import cores
from subspace.study.spec.study import Run, Training


class WorkerDied(Exception):  # noqa: N818
    """The process or job that trained a run ended without a result; the message is the cause."""


class Job(Protocol):
    """A run that is being trained."""

    run: Run

    def done(self) -> bool:
        """Whether it has ended, well or not; never waits."""

    def result(self) -> str:
        """What `execute` returned, once it is done. Raises WorkerDied, and the StorageError of `execute`."""


class Launcher(AbstractContextManager["Launcher"]):
    """Leaving its block stops the jobs that have not ended.

    capacity: the maximum number of concurrent runs; None for launchers that queue.
    """

    capacity: int | None = None

    def __exit__(self, *exception: object) -> None:
        """Stop what has not ended; by default there is nothing to stop."""

    @abc.abstractmethod
    def submit(self, runs: Sequence[Run]) -> list[Job]:
        """Start training these runs; one job for each, in the same order."""

    @abc.abstractmethod
    def wait(self, jobs: Sequence[Job], seconds: float) -> None:
        """Wait until one of the jobs may have ended, at most `seconds`; not at all if there is none."""


def make_launcher(name: str, folder: Path, train: Training, options: Mapping[str, Any]) -> Launcher:
    """The launcher of that name for results in that folder; ValueError for another name or option."""
    return lookup(name, LAUNCHERS, "launcher")(folder, train, options)


def _inline(folder: Path, train: Training, options: Mapping[str, Any]) -> Launcher:
    from subspace.study.execution.launchers.inline import Inline

    require_known(options, (), "options of inline must be")
    return Inline(folder)


def _pool(folder: Path, train: Training, options: Mapping[str, Any]) -> Launcher:
    from subspace.study.execution.launchers.pool import Pool

    require_known(options, ("workers",), "options of pool must be")
    return Pool(folder, options.get("workers", max(1, cores() // (train.threads * train.processes))))


def _ray(folder: Path, train: Training, options: Mapping[str, Any]) -> Launcher:
    from subspace.study.execution.launchers.ray import Ray

    return Ray(folder, options)


def _slurm(folder: Path, train: Training, options: Mapping[str, Any]) -> Launcher:
    from subspace.study.execution.launchers.slurm import Slurm

    return Slurm(folder, options)


LAUNCHERS = {"pool": _pool, "inline": _inline, "ray": _ray, "slurm": _slurm}
