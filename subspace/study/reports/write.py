"""What a study leaves and shows at its end, all of it made from the stored records, in one folder:

    report.html                        everything below in one page that needs no network (`reports.html`)
    runs, epochs, tensors: .parquet    the long tables that `results.schema` describes; .csv: the same
    table.csv                          means over seeds (`summary.summary_table`)
    at-bytes.csv, at-flops.csv, ...    methods at equal cost (`equal_cost.at_equal`)
    accuracy-density.png, .svg, ...    the figures (`reports.figures.all`)
    study.toml                         what was asked for

Every file is there whole or as it was before.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from rich.console import Console, Group

from subspace.study.reports import html
from subspace.study.reports import terminal as printed
from subspace.study.reports.figures import images
from subspace.study.reports.figures.all import pictures
from subspace.study.results.equal_cost import COSTS, at_equal
from subspace.study.results.store import Record, replace
from subspace.study.results.summary import places, summary_table
from subspace.study.results.tables import epochs_table, runs_table, tensors_table
from subspace.study.spec.study import Study


def report(
    study: Study,
    records: Iterable[Record],
    folder: Path | str,
    console: Console | None = None,
    at: str | None = None,
    toml: str = "",
) -> pd.DataFrame:
    """Write all of it into the folder, and return the runs table.

    console: where to print the tables and the failures. at: one of `COSTS`, to print methods at equal cost as
    well; ValueError for another. toml: the study as a file has it. OSError where the folder cannot be written.
    """
    records, folder = list(records), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    runs, epochs, tensors = runs_table(records), epochs_table(records), tensors_table(records)
    table = summary_table(runs)
    equal = {cost: at_equal(table, cost) for cost in COSTS}
    asked = equal[at] if at in equal else at_equal(table, at) if at else None
    for name, long in {"runs": runs, "epochs": epochs, "tensors": tensors}.items():
        parquet = io.BytesIO()
        long.to_parquet(parquet, index=False)
        put(folder / f"{name}.parquet", parquet.getvalue())
        put(folder / f"{name}.csv", csv(long))
    for name, small in {"table": table, **{f"at-{cost}": found for cost, found in equal.items()}}.items():
        put(folder / f"{name}.csv", csv(small))
    if toml:
        put(folder / "study.toml", toml.encode())
    shown = []
    for picture in pictures(runs, epochs, tensors, table):
        svg = images.saved(picture.figure, "svg")
        put(folder / f"{picture.name}.svg", svg)
        put(folder / f"{picture.name}.png", images.saved(picture.figure, "png"))
        shown.append(html.Shown(picture.title, picture.alt, images.inline(svg, picture.name)))
    page = html.page(study.name, len(study.runs()), records, runs, table, equal, shown, toml)
    put(folder / "report.html", page.encode())
    if console:
        for text in told(runs, table, asked):
            console.print(text, markup=False, highlight=False, soft_wrap=isinstance(text, str))
        console.print(f"report.html, tables and figures are in {folder}", markup=False, highlight=False, soft_wrap=True)
    return runs


def told(runs: pd.DataFrame, table: pd.DataFrame, asked: pd.DataFrame | None) -> Iterable[Group | str]:
    """The tables for people, and a line for every run that failed."""
    for name, part in places(table):
        if part["seeds"].any():
            yield printed.accuracy(part, name)
            yield printed.costs(part, name)
            yield from printed.talk(part, name)
    for name, part in places(asked) if asked is not None else []:
        yield from printed.equal(part, name)
    if not (runs["status"] == "finished").any():
        yield "No run has finished."
    for _, run in runs[runs["status"] == "failed"].iterrows():
        yield f"FAILED  {html.named(run)}: {run['error']}"


def csv(table: pd.DataFrame) -> bytes:
    """A table as CSV, numbers in full."""
    return table.to_csv(index=False, lineterminator="\n").encode()


def put(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or as it was before."""
    replace(path, content, durable=False)
