"""Runs as tasks of a Ray cluster: one that is there already, or one of this machine for the time of the study.

Ray holds the queue and puts as many runs on a node as its processors and GPUs take. The folder of results must be the
same on every node, as on a shared file system, and so must this package and what the study imports.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from subspace.study.entries.lookup import require_known
from subspace.study.execution.launchers import Job, Launcher, WorkerDied
from subspace.study.execution.launchers.worker import executed
from subspace.study.results.disk import StorageError
from subspace.study.spec.study import Run

OPTIONS = ("address", "num_cpus", "num_gpus", "memory", "resources", "runtime_env", "scheduling_strategy")


class RayJob:
    """A task of Ray's, by the reference to its result."""

    def __init__(self, run: Run, reference: Any) -> None:
        self.run, self.reference = run, reference

    def done(self) -> bool:
        """Whether Ray has a result, or knows that there will be none."""
        import ray

        return bool(ray.wait([self.reference], timeout=0)[0])

    def result(self) -> str:
        """What `execute` returned."""
        import ray

        try:
            outcome: str | StorageError = ray.get(self.reference)
        except ray.exceptions.RayError as error:
            raise WorkerDied(f"the Ray task died: {cause(error)}") from None
        if isinstance(outcome, StorageError):
            raise outcome
        return outcome


class Ray(Launcher):
    """A task for each run, with a processor for each of its threads and, on cuda, a GPU for each of its processes.

    options: "address" of a cluster ("auto" finds one on this machine; without it, that of RAY_ADDRESS, or else one is
    started), and what else a task needs, under Ray's own names: num_gpus, memory, ... ValueError for another.
    """

    def __init__(self, folder: Path, options: Mapping[str, Any]) -> None:
        require_known(options, OPTIONS, "options of ray must be")
        if find_spec("ray") is None:
            raise ValueError("launcher ray must have Ray, got none: pip install 'torch-subspace[ray]'")
        self.folder = folder.absolute()
        # a Ray that another program has started here may end with it, so it is joined only where it is named
        self.address = options.get("address") or os.environ.get("RAY_ADDRESS", "local")
        self.needs = {name: value for name, value in options.items() if name != "address"}
        self.jobs: list[RayJob] = []

    def __enter__(self) -> Ray:
        import ray

        self.mine = not ray.is_initialized()
        if self.mine:
            try:
                ray.init(self.address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, ValueError) as error:
                raise ValueError(f"address must be that of a Ray cluster, got {self.address!r}: {error}") from None
        return self

    def __exit__(self, *exception: object) -> None:
        import ray

        for job in self.jobs:
            if not job.done():
                ray.cancel(job.reference, force=True)
        if self.mine:
            ray.shutdown()

    def submit(self, runs: Sequence[Run]) -> list[Job]:
        """Put the runs in Ray's queue. A task that dies is not repeated by Ray."""
        import ray

        task = ray.remote(work)
        jobs, data = [], os.environ.get("SUBSPACE_DATA")
        for run in runs:
            train = run.train
            gpus = train.processes * ("cuda" in train.device)
            needs = {"num_cpus": train.threads * train.processes, "num_gpus": gpus, **self.needs}
            reference = task.options(max_retries=0, **needs).remote(run, self.folder, Path.cwd(), data)
            jobs.append(RayJob(run, reference))
        self.jobs += jobs
        return cast("list[Job]", jobs)

    def wait(self, jobs: Sequence[Job], seconds: float) -> None:
        """Until a task ends, at most so long."""
        import ray

        if jobs:
            ray.wait([cast("RayJob", job).reference for job in jobs], timeout=seconds)


def work(run: Run, folder: Path, place: Path, data: str | None) -> str | StorageError:
    """What a task does on its node: train the run, in the study's working directory where the node has it.

    data: the folder of data sets that was named there.
    """
    if place.is_dir():
        os.chdir(place)
    if data:
        os.environ["SUBSPACE_DATA"] = data
    return executed(run, folder)


def cause(error: Exception) -> str:
    """What an error of Ray's says, in its first sentence; of an exception in the task, what that says."""
    origin = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(origin).splitlines() if line.strip()]
    return f"{type(origin).__name__}: {lines[0]}" if lines else type(origin).__name__
