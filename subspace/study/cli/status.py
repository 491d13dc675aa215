"""`subspace status`: how far every run of a study is."""

from __future__ import annotations

from subspace.study.cli import options
from subspace.study.cli.options import NOTHING, OUT, Out
from subspace.study.execution.progress import say
from subspace.study.results.disk import StorageError
from subspace.study.results.store import Store
from subspace.study.spec.study import Run


def status(asked: options.Asked = NOTHING, out: Out = OUT) -> None:
    """Say how far every run is: finished, failed, interrupted, running or missing."""
    with options.sentences():
        study, store, console = options.read_study(asked), Store(out), options.plain_console()
        for run in study.runs():
            say(console, f"{run.hash}  {run}: {describe(run, store)}")


def describe(run: Run, store: Store) -> str:
    """How far a run is, in words."""
    try:
        record = store.read(run)
    except ValueError:
        return "damaged: will be set aside, and run again"
    if record and record["status"] == "finished":
        return f"finished, {record['metrics']['epochs'][-1]['test_accuracy']:.1%}"
    done = f"epoch {len(store.progress(run))} of {run.epochs}"
    if is_running(run, store):
        return f"running, {done}"
    if record:
        return f"failed {record['attempts']} times: {record['error']}"
    return f"interrupted after {done}" if store.progress(run) else "missing"


def is_running(run: Run, store: Store) -> bool:
    """Whether a process holds the run's lock, as far as that can be known."""
    if not store.directory(run).exists():
        return False
    try:
        with store.held(run) as mine:
            return not mine
    except StorageError:  # a folder that can be read only
        return False
