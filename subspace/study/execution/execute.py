"""Train one run and store its result, in any process on any machine that shares the store: exactly once.

The process holds the run's lock, which the system releases when it dies. A run with a result is not trained again; an
interrupted one is resumed from its last epoch.
"""

from __future__ import annotations

import datetime
import errno
import os
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from subspace.study.execution.environment import environment
from subspace.study.results.disk import StorageError
from subspace.study.results.store import Record, Store
from subspace.study.spec.study import Run
from subspace.study.training.run import train
from subspace.study.training.state import State, StateStore, pack, unpack

Task = Callable[[Run, StateStore], dict[str, Any]]  # like `train`
FULL = (errno.ENOSPC, errno.EDQUOT)  # no fault of a run, whichever file it was


class RunStateStore(StateStore):
    """The state of a run in a store."""

    def __init__(self, store: Store, run: Run) -> None:
        self.store, self.run = store, run

    def load(self) -> State | None:
        try:
            content = self.store.read_state(self.run)
        except ValueError as damage:
            self.reject(str(damage))
            return None
        try:
            return None if content is None else unpack(content)
        except Exception as error:  # of torch's unpickler, which runs no code
            self.reject(f"the state of {self.run} must be readable, got: {str(error).splitlines()[0]}")
            return None

    def save(self, state: State) -> None:
        self.store.write_state(self.run, pack(state), state["done"])

    def reject(self, reason: str) -> None:
        aside = self.store.set_aside(self.store.directory(self.run) / "state.pt")
        warnings.warn(f"{reason}; set aside as {aside.name}, and the run begins anew", stacklevel=2)


def execute(run: Run, folder: Path | str, task: Task = train) -> Literal["ended", "elsewhere"]:
    """Train a run and store its record, finished or failed.

    Args:
        run: to train.
        folder: of the store.
        task: what trains, called with the run and where its state is stored.

    Returns:
        "ended", or "elsewhere" if another process holds the run's lock.

    Raises:
        StorageError: a disk cannot be written. The run has not ended then, and has not failed.
    """
    prepare(run)
    store = Store(folder)
    with store.held(run) as mine:
        if not mine:
            return "elsewhere"
        previous = read_or_set_aside(store, run, warnings.warn)
        if previous is None or previous["status"] != "finished":
            store.clear(run)
            store.write(run, attempt(run, RunStateStore(store, run), attempts(previous) + 1, task))
            read_or_set_aside(store, run, warnings.warn)
    return "ended"


def read_or_set_aside(store: Store, run: Run, say: Callable[[str], object]) -> Record | None:
    """The record of a run; a damaged one is set aside, which is said, and counts as none. Needs the run's lock.

    The state of a finished run, which a process that died between the two may have left, is removed.
    """
    try:
        record = store.read(run)
    except ValueError as damage:
        say(f"{damage}; set aside as {store.set_aside(store.path(run)).name}")
        return None
    if record is not None and record["status"] == "finished":
        store.clear(run, state=True)
    return record


def prepare(run: Run) -> None:
    """Make this process compute as every other: the run's threads, and the same routes of structured layers."""
    torch.set_num_threads(run.train.threads)
    os.environ.setdefault("SUBSPACE_COSTS", "typical")


def attempt(run: Run, states: StateStore, number: int, task: Task = train) -> Record:
    """Train a run and return the record of what happened: an exception ends the run, not the study."""
    metrics = error = trace = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        try:
            metrics = task(run, states)
        except StorageError:
            raise
        except Exception as exception:
            if isinstance(exception, OSError) and exception.errno in FULL:
                raise StorageError(f"a disk must have room, got: {exception}") from exception
            error, trace = f"{type(exception).__name__}: {exception}", traceback.format_exc()
    warned = [str(warning.message) for warning in caught]
    return make_record(metrics, error, trace, warned, number, run.train.device)


def attempts(record: Record | None) -> int:
    """How often a run was tried, by its record."""
    return 0 if record is None else int(record["attempts"])


def make_record(
    metrics: dict[str, Any] | None,
    error: str | None,
    trace: str | None = None,
    warned: Sequence[str] = (),
    number: int = 1,
    device: str = "cpu",
) -> Record:
    """The record of the attempt of that number, which ended in this environment."""
    return {
        "status": "failed" if error else "finished",
        "attempts": number,
        "finished_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "environment": environment(device),
        "metrics": metrics,
        "error": error,
        "traceback": trace,
        "warnings": list(dict.fromkeys(warned)),
    }
