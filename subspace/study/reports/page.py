"""The report of a study as one page: no network, no other file, and whatever a record says is text, never markup.

The page is `templates/report.html`. Its tables are plain ones, which DataTables (the bundle that itables ships, within
the page) makes sortable and filterable; figures are SVG elements. A policy in the page forbids it to load anything.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from subspace.study.entries.words import duration
from subspace.study.reports import grids
from subspace.study.reports.grid import Grid
from subspace.study.reports.report import Report, describe_run
from subspace.study.reports.story import stories
from subspace.study.results.schema import SCHEMA, describe
from subspace.study.results.store import Record
from subspace.study.results.summary import by_setting
from subspace.study.spec.study import Study


class Shown(NamedTuple):
    """A figure for the page: its title, what it shows in words, its SVG element, and whether it opens the page.

    legend: the methods, each with its line as CSS has a border, for screens that show no more than the curves.
    """

    title: str
    alt: str
    svg: str
    is_first: bool
    legend: list[tuple[str, str]]


def page(study: Study, records: Sequence[Record], report: Report, figures: Sequence[Shown], toml: str) -> str:
    """The page of a study: the records of its runs, and what was made of them."""
    html = Environment(
        loader=PackageLoader("subspace.study.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    runs, table = report.runs, report.table
    script, sheet = bundle()
    drawn = [shown._replace(svg=Markup(shown.svg)) for shown in figures]
    finished = [(where, part) for where, part in by_setting(table) if part["seeds"].any()]
    failed = [(run, record) for (_, run), record in zip(runs.iterrows(), records, strict=True) if record["error"]]
    return html.get_template("report.html").render(
        name=study.name,
        facts=facts(len(study.runs()), runs),
        stories=stories(table, report.compared),
        summary=grids.summary_grid(table) if len(table) else None,
        compared=[grids.compared_grid(part, where) for where, part in by_setting(report.compared)],
        price_tanner=[grids.price_tanner_grid(part, where) for where, part in finished],
        equal=[grids.equal_grid(part, where) for found in report.equal.values() for where, part in by_setting(found)],
        first=[shown for shown in drawn if shown.is_first],
        figures=[shown for shown in drawn if not shown.is_first],
        runs=grids.runs_grid(runs) if len(runs) else None,
        failures=[(describe_run(run), record["error"], record.get("traceback") or "") for run, record in failed],
        warnings=Counter(text for record in records for text in record.get("warnings") or []).most_common(),
        toml=toml,
        environments=environments(records),
        columns=Grid.of_texts(f"Columns of the tables, schema {SCHEMA}", describe().columns, describe().to_numpy()),
        versions=", ".join(runs["version"].dropna().unique()),
        script=Markup(script),
        sheet=Markup(sheet),
    )


def bundle() -> tuple[str, str]:
    """DataTables as itables ships it: the module in base64, and the style sheet."""
    import itables.options

    path = Path(itables.options.dt_bundle)
    return base64.b64encode(path.read_bytes()).decode(), path.with_suffix(".css").read_text("utf-8")


def facts(expected: int, runs: pd.DataFrame) -> list[tuple[str, str]]:
    """What ran, in a few figures."""
    count = runs["status"].value_counts()
    found = [("runs asked for", str(expected))]
    found += [(status, str(int(count.get(status, 0)))) for status in ("finished", "failed")]
    found += [("missing", str(expected - len(runs)))] if expected > len(runs) else []
    found += [("time of all runs", duration(float(runs["seconds"].sum())))]
    ends = runs["finished_at"].dropna()
    return found + ([("first ended", str(ends.min())), ("last ended", str(ends.max()))] if len(ends) else [])


def environments(records: Sequence[Record]) -> Grid | None:
    """Where the runs were trained: a column for each machine and set of versions, with how many runs it trained."""
    met = Counter(json.dumps(record.get("environment") or {}, sort_keys=True) for record in records)
    each: list[dict[str, Any]] = [json.loads(text) for text in met]
    keys = list(dict.fromkeys(key for environment in each for key in environment))
    rows = [[key, *(environment.get(key, "-") for environment in each)] for key in keys]
    heads = ["", *(f"{count} run{'s' * (count > 1)}" for count in met.values())]
    return Grid.of_texts("Machine and versions", heads, rows) if keys else None
