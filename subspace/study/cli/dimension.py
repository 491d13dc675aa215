"""`subspace dimension`: the least dim that reaches a share of ordinary training's accuracy."""

from __future__ import annotations

import signal
from typing import Annotated

import typer

from subspace.study.cli import options
from subspace.study.cli.options import NOTHING, OUT, Launch, Launcher, Out, Retry

Target = Annotated[float, typer.Option(help="the share of ordinary training's accuracy to reach, in (0, 1]")]


def dimension(
    asked: options.Asked = NOTHING,
    target: Target = 0.9,
    out: Out = OUT,
    launcher: Launcher = "pool",
    launch: Launch = NOTHING,
    retry: Retry = False,
) -> None:
    """Find the intrinsic dimension: the least dim that reaches 90 % of ordinary training's accuracy.

    STUDY is questions/dimension unless it is given; dims=LEAST,MOST bound the search. What has a result is not run
    again, and what was interrupted goes on from its last epoch.
    """
    from subspace.study.execution.dimension import dimension as find_dimension
    from subspace.study.execution.progress import Lines

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = options.plain_console()
    try:
        with options.sentences():
            study, settings = options.read_study(asked, "questions/dimension"), options.read_settings(launch)
            table = find_dimension(
                study, target, out, launcher, options=settings, callbacks=[Lines(console)], retry=retry
            )
    except KeyboardInterrupt:
        typer.echo("Stopped: what is finished is kept, and the same command goes on from there.")
        raise typer.Exit(130) from None
    typer.echo(f"{out / study.name / 'dimension.csv'}, dimension-runs.csv and dimension-1.png")
    raise typer.Exit(1 if any(table["note"]) else 0)
