"""`subspace report`: the report of what is there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from subspace.study.cli import options
from subspace.study.cli.options import NOTHING, OUT, At, Out
from subspace.study.entries.lookup import lookup
from subspace.study.execution.plan import write_report
from subspace.study.execution.progress import say
from subspace.study.reports.terminal import print_report
from subspace.study.results.equal_cost import COSTS
from subspace.study.results.store import Store

To = Annotated[Path | None, typer.Option(help="folder of the report, in place of OUT/<name of the study>")]
Hosts = Annotated[bool, typer.Option("--hosts", help="with names of hosts and absolute paths, not to be shared")]


def report(asked: options.Asked = NOTHING, out: Out = OUT, at: At = "", to: To = None, hosts: Hosts = False) -> None:
    """Write and print the report of what has a result; train nothing."""
    console = options.plain_console()
    with options.sentences():
        if at:
            lookup(at, COSTS, "cost")
        study = options.read_study(asked)
        study.runs()  # which says what is wrong with them
    with options.sentences(values=False):
        found = write_report(study, Store(out), to, hosts, lambda text: say(console, text))
        print_report(found, console, at)
