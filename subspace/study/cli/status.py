"""How every run of a study stands, as a table for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from subspace.study.results.store import Store
from subspace.study.spec.study import Run


def standing(runs: Sequence[Run], store: Store) -> Table:
    """One row for each run: the folder of its results under runs/, what it is, and how far it has come."""
    shown = Table("runs/", "run", "stands", box=box.SIMPLE_HEAD, pad_edge=False)
    for run in runs:
        shown.add_row(run.hash, str(run), stand(run, store))
    return shown


def stand(run: Run, store: Store) -> str:
    """How far a run has come, in words."""
    try:
        record = store.read(run)
    except ValueError:
        return "damaged: will be set aside, and run again"
    if record and record["status"] == "finished":
        return f"finished, {record['metrics']['epochs'][-1]['test_accuracy']:.1%}"
    done = f"epoch {len(store.progress(run))} of {run.epochs}"
    if store.directory(run).exists():
        with store.held(run) as mine:
            if not mine:
                return f"under way, {done}"
    if record:
        return f"failed {record['attempts']} times: {record['error']}"
    return f"interrupted after {done}" if store.progress(run) else "missing"
