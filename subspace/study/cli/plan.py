"""`subspace plan`: what would run."""

from __future__ import annotations

import typer

from subspace.study.cli import options
from subspace.study.cli.options import NOTHING, OUT, Launch, Launcher, Out, Retry
from subspace.study.execution.callbacks import Callback
from subspace.study.execution.estimate import estimate
from subspace.study.execution.plan import Plan


def plan(
    asked: options.Asked = NOTHING,
    out: Out = OUT,
    launcher: Launcher = "pool",
    launch: Launch = NOTHING,
    retry: Retry = False,
) -> None:
    """Say what would run, and how long it takes by the times of finished runs; train nothing.

    All that a study names is checked, so the modules of its import paths are run.
    """
    with options.sentences():
        found = Plan.of(options.read_study(asked), out, launcher, options.read_settings(launch))
        missing = found.unfinished(Callback(), retry)
        typer.echo(str(estimate(missing, found.store, found.launcher.capacity or len(missing))))
