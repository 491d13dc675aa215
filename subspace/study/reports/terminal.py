"""A report as text."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, Group

from subspace.study.entries.words import printable
from subspace.study.reports import grids
from subspace.study.reports.report import Report, describe_run
from subspace.study.reports.story import stories
from subspace.study.results.summary import by_setting


def print_report(report: Report, console: Console, at: str = "") -> None:
    """Print what a study found in a sentence, a picture and tables, and what failed.

    at: one of `equal_cost.COSTS`, to compare methods at it too.
    """
    for told in stories(report.table, report.compared):
        console.print(printable(told) + "\n", markup=False, highlight=False)
    for shown in shown_tables(report, at):
        console.print(shown, markup=False, highlight=False)
    lines = [] if (report.runs["status"] == "finished").any() else ["No run has finished."]
    failed = report.runs[report.runs["status"] == "failed"]
    lines += [f"FAILED  {describe_run(run)}: {run['error']}" for _, run in failed.iterrows()]
    for line in [*lines, f"report.html, tables and figures are in {report.folder}"]:
        console.print(printable(line), markup=False, highlight=False, soft_wrap=True)


def shown_tables(report: Report, at: str) -> Iterator[Group]:
    """The picture and the tables, for every data set and network."""
    finished = [(where, part) for where, part in by_setting(report.table) if part["seeds"].any()]
    for where, part in finished:
        yield grids.bars_grid(part, where).to_rich()
    for where, part in finished:
        for make in (grids.accuracy_grid, grids.costs_grid, grids.price_tanner_grid):
            yield make(part, where).to_rich()
    for where, part in by_setting(report.compared):
        yield grids.compared_grid(part, where).to_rich()
    for where, part in by_setting(report.equal[at]) if at else ():
        yield grids.equal_grid(part, where).to_rich()
