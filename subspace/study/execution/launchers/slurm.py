"""Runs as jobs of a Slurm cluster, by submitit: an array of jobs, of which Slurm starts as many as it has room for.

A job that is preempted, or that comes to the end of its time, is queued again and goes on from its last epoch. The
folder of results must be the same on every node, as on a shared file system; what submitit writes, logs included, is
in its folder slurm.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any, cast

from subspace.study.entries.lookup import require_known
from subspace.study.execution.launchers import Job, Launcher, WorkerDied
from subspace.study.execution.launchers.worker import executed
from subspace.study.results.disk import StorageError
from subspace.study.spec.study import Run

DEFAULTS = {"name": "subspace", "timeout_min": 240}
OWN = ("cluster", "detach", "slurm_max_num_timeout")
SOME = ("mem_gb", "gpus_per_node", "slurm_partition", "slurm_account", "slurm_qos", "slurm_array_parallelism")  # of 50


class Task:
    """What a job does."""

    def __init__(self, run: Run, folder: Path) -> None:
        self.run, self.folder = run, folder

    def __call__(self) -> str | StorageError:
        return executed(self.run, self.folder)

    def checkpoint(self) -> Any:
        """What is queued in its place when the job must make room: the same, as the store has all it goes on from."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class SlurmJob:
    """A job of submitit's."""

    def __init__(self, run: Run, job: Any) -> None:
        self.run, self.job = run, job

    def done(self) -> bool:
        """Whether there is a result, or Slurm says that there will be none; it is asked once a minute at most."""
        return bool(self.job.done())

    def result(self) -> str:
        """What `execute` returned."""
        try:
            outcome: str | StorageError = self.job.result()
        except Exception as error:  # submitit's, or one of unpickling
            state = str(self.job.state).lower()
            raise WorkerDied(f"job {self.job.job_id} ended without a result, {state}{self.last(error)}") from None
        if isinstance(outcome, StorageError):
            raise outcome
        return outcome

    def last(self, error: Exception) -> str:
        """The last line that the job wrote to stderr, but for submitit's, or else that of an error in the job."""
        said = (self.job.stderr() or "").splitlines() or str(error).splitlines()
        lines = [line.strip() for line in said if line.strip() and not line.startswith("submitit ")]
        return f": {lines[-1]}" if lines else ""


class Slurm(Launcher):
    """A job for each run, with a processor for each of its threads and, on cuda, a GPU for each of its processes.

    options: "cluster" ("slurm", or "local" and "debug" to try it without), "detach" (to leave jobs running when
    the study is interrupted; the same command finds their results), and submitit's: timeout_min (240 unless it is
    given), mem_gb, slurm_partition, ... ValueError for another, or where there is no Slurm.
    """

    def __init__(self, folder: Path, options: Mapping[str, Any]) -> None:
        if find_spec("submitit") is None:
            raise ValueError("launcher slurm must have submitit, got none: pip install 'torch-subspace[slurm]'")
        import submitit

        cluster = str(options.get("cluster", "slurm"))
        if cluster not in ("slurm", "local", "debug"):
            raise ValueError(f"cluster must be slurm, local or debug, got {cluster!r}")
        if cluster == "slurm" and not shutil.which("sbatch"):
            raise ValueError("launcher slurm must run where jobs are submitted, got a machine without sbatch")
        self.folder, self.detach = folder.absolute(), bool(options.get("detach", False))
        self.capacity = {"slurm": None, "local": os.cpu_count(), "debug": 1}[cluster]
        tries = int(options.get("slurm_max_num_timeout", 100))
        self.executor = submitit.AutoExecutor(self.folder / "slurm", cluster=cluster, slurm_max_num_timeout=tries)
        self.parameters = DEFAULTS | {name: value for name, value in options.items() if name not in OWN}
        for name, value in self.parameters.items():
            self.update(name, value)
        self.jobs: list[SlurmJob] = []

    def __exit__(self, *exception: object) -> None:
        for job in [] if self.detach else self.jobs:
            if not job.done():
                job.job.cancel(check=False)

    def submit(self, runs: Sequence[Run]) -> list[Job]:
        """Put the runs in one array of Slurm's queue. ValueError, with what Slurm says, where it does not take them."""
        jobs: list[SlurmJob] = []
        for (threads, gpus), alike in groupby(runs, needs):
            self.update("cpus_per_task", self.parameters.get("cpus_per_task", threads))
            self.update("gpus_per_node", self.parameters.get("gpus_per_node", gpus))
            array = list(alike)
            try:
                with self.executor.batch():
                    submitted = [self.executor.submit(Task(run, self.folder)) for run in array]
            except RuntimeError as error:
                said = " ".join(str(error).split())
                raise ValueError(f"options of slurm must be ones that it takes, got: {said}") from error
            jobs += map(SlurmJob, array, submitted)
        self.jobs += jobs
        return cast("list[Job]", jobs)

    def wait(self, jobs: Sequence[Job], seconds: float) -> None:
        """So long: submitit tells nobody when a job ends."""
        if jobs and not any(job.done() for job in jobs):
            time.sleep(seconds)

    def update(self, name: str, value: Any) -> None:
        """Set one of submitit's parameters."""
        try:
            self.executor.update_parameters(**{name: value})
        except NameError:
            require_known([name], (*OWN, *DEFAULTS, *SOME), "options of slurm must be submitit's, as")
        except (AssertionError, TypeError, ValueError) as error:
            raise ValueError(f"{name} of slurm must be as submitit has it, got {value!r}: {error}") from None


def needs(run: Run) -> tuple[int, int]:
    """The processors and GPUs of a run."""
    return run.train.threads * run.train.processes, run.train.processes * ("cuda" in run.train.device)
