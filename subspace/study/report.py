"""What a study leaves and shows at its end, all of it made from the stored records."""

from __future__ import annotations

from rich.console import Console

from subspace.study.config import Run
from subspace.study.plots import accuracy_against_density
from subspace.study.progress import outcome
from subspace.study.store import Record, Store
from subspace.study.tables import printed, printed_costs, runs_table, summary_table

TITLE = "Training few weights: LeNet-5 on 5,000 MNIST digits"


def records(runs: list[Run], store: Store) -> list[Record]:
    """What the store has of the runs."""
    return [record for run in runs if (record := store.read(run))]


def report(runs: list[Run], store: Store, console: Console) -> int:
    """Write runs.csv, table.csv and accuracy.png, show the tables and the failures; returns how many there are."""
    rows = runs_table(records(runs, store))
    table = summary_table(rows)
    rows.to_csv(store.folder / "runs.csv", index=False)
    table.to_csv(store.folder / "table.csv", index=False)
    if len(table):
        accuracy_against_density(table, TITLE).savefig(store.folder / "accuracy.png", dpi=160)
        console.print(printed(table))
        console.print(printed_costs(table))
    failed = [(run, record) for run in runs if (record := store.read(run)) and record["status"] == "failed"]
    for run, record in failed:
        console.print(outcome(run, record), markup=False, highlight=False, soft_wrap=True)
    console.print(f"runs.csv, table.csv, accuracy.png and runs/ are in {store.folder}", markup=False, soft_wrap=True)
    return len(failed)
