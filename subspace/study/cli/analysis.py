"""What the commands share that make more of a study's results than its report does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from subspace._base.files import write_atomically
from subspace.study.cli.options import read_study
from subspace.study.entries.words import printable
from subspace.study.execution.plan import read_intact
from subspace.study.results.disk import storage
from subspace.study.results.store import Record, Store

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def read_records(asked: Sequence[str], preset: str, out: Path) -> tuple[Path, list[Record]]:
    """The folder of a study, and the records of its runs; ValueError where there are none."""
    study, store = read_study(asked, preset), Store(out)
    runs = study.runs()
    records = read_intact(runs, store, typer.echo)
    if not records:
        raise ValueError(f"{out} must have results of {study.name}, got none: run subspace run {' '.join(asked)}")
    if missing := len(runs) - len(records):
        typer.echo(f"{missing} of {len(runs)} runs have no result yet")
    return store.folder / study.name, records


def write_analysis(
    folder: Path, name: str, tables: dict[str, pd.DataFrame], figures: Iterable[tuple[str, Figure]]
) -> None:
    """Write tables as CSV and figures as PNG and SVG, and say which."""
    from subspace.study.reports.figures import images
    from subspace.study.reports.report import csv

    with storage(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for each, table in tables.items():
            write_atomically(folder / f"{each}.csv", csv(table), durable=False)
            typer.echo(f"{folder / each}.csv")
        for number, (title, figure) in enumerate(figures, 1):
            for kind in ("png", "svg"):
                write_atomically(folder / f"{name}-{number}.{kind}", images.saved(figure, kind), durable=False)
            typer.echo(printable(f"{folder / name}-{number}.png  {title}"))
