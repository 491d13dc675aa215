"""Bringing one run to its record, in any process on any machine that shares the store: exactly once, whatever crashes.

The run's lock is held meanwhile, and the system lets go of it when the process dies. What has finished is not trained
again; what was interrupted goes on from its last epoch.
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
from subspace.study.results.store import Record, StorageError, Store
from subspace.study.spec.study import Run
from subspace.study.training.loop import Keeper
from subspace.study.training.run import train
from subspace.study.training.state import State, pack, unpack

FULL = (errno.ENOSPC, errno.EDQUOT)  # no fault of a run, whichever file it was
Task = Callable[[Run, Keeper], dict[str, Any]]  # like `train`


class Kept:
    """A run's state in a store. One that is damaged is set aside with a warning, and the run begins anew."""

    def __init__(self, store: Store, run: Run) -> None:
        self.store, self.run = store, run

    def load(self) -> State | None:
        try:
            content = self.store.read_state(self.run)
        except ValueError as damage:
            aside = self.store.set_aside(self.store.directory(self.run) / "state.pt")
            warnings.warn(f"{damage}; set aside as {aside.name}, and begun anew", stacklevel=2)
            return None
        return None if content is None else unpack(content)

    def save(self, state: State) -> None:
        self.store.write_state(self.run, pack(state), state["done"])


def execute(run: Run, folder: Path | str, task: Task = train) -> Literal["ended", "elsewhere"]:
    """Train a run and store its record, finished or failed; "elsewhere" if another process is at it.

    StorageError where the store cannot be written: the run has not ended then, and it is no failure of its.
    """
    prepare(run)
    store = Store(folder)
    with store.held(run) as mine:
        if not mine:
            return "elsewhere"
        previous = intact(store, run, warnings.warn)
        if previous is None or previous["status"] != "finished":
            store.clear(run)
            store.write(run, attempt(run, Kept(store, run), attempts(previous) + 1, task))
        store.clear(run, state=store.read(run)["status"] == "finished")  # type: ignore[index]
    return "ended"


def intact(store: Store, run: Run, say: Callable[[str], object]) -> Record | None:
    """The record of a run; a damaged one is set aside, which is said, and counts as none. Needs the run's lock."""
    try:
        return store.read(run)
    except ValueError as damage:
        say(f"{damage}; set aside as {store.set_aside(store.path(run)).name}")
        return None


def prepare(run: Run) -> None:
    """Make this process compute as every other does: so many threads, and the same routes of structured layers."""
    torch.set_num_threads(run.train.threads)
    os.environ.setdefault("SUBSPACE_COSTS", "typical")


def attempt(run: Run, keeper: Keeper, number: int, task: Task = train) -> Record:
    """Do a run and say what happened: an exception ends the run, not the study."""
    metrics = error = trace = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        try:
            metrics = task(run, keeper)
        except StorageError:
            raise
        except Exception as exception:
            if isinstance(exception, OSError) and exception.errno in FULL:
                raise StorageError(f"a disk must have room, got: {exception}") from exception
            error, trace = f"{type(exception).__name__}: {exception}", traceback.format_exc()
    warned = [str(warning.message) for warning in caught]
    return outcome(metrics, error, trace, warned, number, run.train.device)


def attempts(record: Record | None) -> int:
    """How often a run was tried, by its record."""
    return 0 if record is None else int(record["attempts"])


def outcome(
    metrics: dict[str, Any] | None,
    error: str | None,
    trace: str | None = None,
    warned: Sequence[str] = (),
    number: int = 1,
    device: str = "cpu",
) -> Record:
    """How the so-many-th attempt at a run ended in this environment, as `store` keeps it."""
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
