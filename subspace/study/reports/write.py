"""What a study leaves, all of it made from the stored records, in one folder:

    report.html                        everything below in one page that needs no network (`reports.page`)
    runs, epochs, tensors: .parquet    the long tables that `results.schema` describes; .csv: the same
    table.csv                          means over seeds (`summary.summary_table`)
    comparisons.csv                    the best methods against the others, in pairs of equal seeds (`comparisons`)
    at-bytes.csv, at-flops.csv, ...    methods at equal cost (`equal_cost.at_equal`)
    accuracy-density.png, .svg, ...    the figures (`figures.all`)
    study.toml                         what was asked for

It is made to be shared: hosts and absolute paths, in which names of users are, are in it only where they are asked for.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pandas as pd

from subspace._base.files import write_atomically
from subspace.study.entries.entry import Choice, Entry
from subspace.study.reports import page
from subspace.study.reports.figures import images
from subspace.study.reports.figures.all import pictures
from subspace.study.reports.figures.looks import css_lines
from subspace.study.reports.report import Report, csv
from subspace.study.results.comparisons import comparisons
from subspace.study.results.disk import storage
from subspace.study.results.equal_cost import COSTS, at_equal
from subspace.study.results.store import Record
from subspace.study.results.summary import summary_table
from subspace.study.results.tables import epochs_table, runs_table, tensors_table
from subspace.study.spec import files
from subspace.study.spec.study import Study, without_place

ROOT = r"(?:/|~/|[A-Za-z]:\\)"
HOME = r"(?:/home/|/Users/|[A-Za-z]:\\Users\\)"
# In quotes, where there may be blanks, and without; a home whole, else all but the last part.
PATHS = re.compile(
    rf"""(?<=['"])(?:{HOME}[^'"/\\\n]+(?=['"])|{ROOT}[^'"\n]*[/\\])"""
    rf"""|(?<![\w.:/\\])(?:{HOME}[\w.-]+(?![\w./\\-])|{ROOT}(?:[^\s'",:;()<>]*[/\\]))"""
)


def write(study: Study, records: Iterable[Record], folder: Path | str, hosts: bool = False) -> Report:
    """Write the report of a study.

    Args:
        study: what was asked for.
        records: of its runs, as many as there are.
        folder: for the report; it is made.
        hosts: whether names of hosts and absolute paths are in it.

    Raises:
        StorageError: the folder cannot be written; every file in it is whole or as it was.
    """
    folder, records = Path(folder), list(records)
    runs, epochs, tensors = (make(records) for make in (runs_table, epochs_table, tensors_table))
    toml = files.toml(study)
    if not hosts:
        records = [without_hosts(record) for record in records]
        runs, epochs, tensors = (without_paths(table) for table in (runs, epochs, tensors))
        study = replace(study, data=tuple(without_places(entry) for entry in study.data))
        toml = PATHS.sub("", files.toml(study))
    table = summary_table(runs)
    report = Report(runs, table, comparisons(runs), {cost: at_equal(table, cost) for cost in COSTS}, folder)
    contents: dict[str, bytes] = {"study.toml": toml.encode()}
    for name, long in {"runs": runs, "epochs": epochs, "tensors": tensors}.items():
        parquet = io.BytesIO()
        long.to_parquet(parquet, index=False)
        contents |= {f"{name}.parquet": parquet.getvalue(), f"{name}.csv": csv(long)}
    small_tables = {"table": table, "comparisons": report.compared}
    for name, small in {**small_tables, **{f"at-{cost}": found for cost, found in report.equal.items()}}.items():
        contents[f"{name}.csv"] = csv(small)
    shown = []
    for picture in pictures(runs, epochs, tensors, table):
        svg = images.saved(picture.figure, "svg")
        contents |= {f"{picture.name}.svg": svg, f"{picture.name}.png": images.saved(picture.figure, "png")}
        inline, legend = images.inline(svg, picture.name), css_lines(picture.labels)
        shown.append(page.Shown(picture.title, picture.alt, inline, picture.is_first, legend))
    with storage(folder):
        folder.mkdir(parents=True, exist_ok=True)
        contents["report.html"] = page.page(study, records, report, shown, toml).encode()
        for name, content in contents.items():
            write_atomically(folder / name, content, durable=False)
    return report


def without_hosts(record: Record) -> Record:
    """The record without the names of its host and of its system, and with the last parts of absolute paths only."""
    environment = {k: v for k, v in (record.get("environment") or {}).items() if k not in ("host", "platform")}
    texts: Record = {
        name: record[name] and PATHS.sub("", record[name]) for name in ("error", "traceback") if name in record
    }
    warnings = [PATHS.sub("", text) for text in record.get("warnings") or []]
    return {**record, "environment": environment, **texts, "warnings": warnings}


def without_paths(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the last parts of absolute paths only.

    Options that would be the same then, of different data or networks, have a digest in place of what is left out.
    """
    cleaned = {}
    for name in table.select_dtypes("string").columns:
        short = table[name].str.replace(PATHS, "", regex=True)
        if name.endswith("options") and short.nunique() < table[name].nunique():
            short = table[name].str.replace(PATHS, _digest, regex=True)
        cleaned[name] = short
    found: pd.DataFrame = table.assign(**cleaned)
    return found


def _digest(path: re.Match[str]) -> str:
    return f"{sha256(path[0].encode()).hexdigest()[:6]}-"


def without_places(entry: Entry) -> Entry:
    """The entry of a data set without where it is found."""
    choice = Choice.of(entry, "data")
    kept = without_place(choice)
    return {"name": choice.name, **kept} if kept else choice.name
