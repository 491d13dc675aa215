"""`subspace run`: train a study, and report it."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import typer
from rich.console import Console

from subspace.study.cli import options
from subspace.study.cli.options import NOTHING, OUT, At, Launch, Launcher, Out, Retry
from subspace.study.entries.lookup import lookup
from subspace.study.entries.words import printable
from subspace.study.execution import trackers
from subspace.study.execution.live import LiveProgress
from subspace.study.execution.plan import Plan, write_report
from subspace.study.execution.progress import Lines, describe_outcome
from subspace.study.reports.terminal import print_report
from subspace.study.results.equal_cost import COSTS

Log = Annotated[list[str], typer.Option(help="tensorboard, wandb or trackio; may be repeated")]
Progress = Annotated[
    Literal["bars", "lines", "failures"], typer.Option(help="bars: on a terminal; failures: only them")
]


def run(
    asked: options.Asked = NOTHING,
    out: Out = OUT,
    launcher: Launcher = "pool",
    launch: Launch = NOTHING,
    retry: Retry = False,
    at: At = "",
    log: Log = NOTHING,
    progress: Progress = "bars",
) -> None:
    """Compare methods at equal budgets: results, tables, figures and a report.html.

    Without a STUDY: first/resnet20, six methods down to 0.01 %, 3 minutes on 2 cores. What has a result is not run
    again, and what was interrupted goes on from its last epoch.
    """
    bars = progress == "bars" and sys.stdout.isatty()
    console = Console() if bars else options.plain_console(quiet=progress == "failures")
    with options.sentences():
        if at:
            lookup(at, COSTS, "cost")
        plan = Plan.of(options.read_study(asked), out, launcher, options.read_settings(launch))
        callbacks = [trackers.find_tracker(name, plan.store.folder / plan.study.name) for name in log]
    with options.interruptible(plan):
        with options.sentences():  # a launcher may find its options bad only now
            plan.carry_out([*callbacks, LiveProgress(console) if bars else Lines(console)], retry)
        with options.sentences(values=False):
            print_report(write_report(plan.study, plan.store), console, at)
    failed = [(each, record) for each, record in plan.results() if record["status"] == "failed"]
    for each, record in failed if progress == "failures" else ():
        typer.echo(printable(describe_outcome(each, record)), err=True)
    raise typer.Exit(1 if failed else 0)
