"""`subspace plan`: what would run."""

from __future__ import annotations

from typing import Annotated

import typer

from subspace.study.cli import options
from subspace.study.cli.options import NOTHING, OUT, Launch, Launcher, Out, Retry
from subspace.study.execution.callbacks import Callback
from subspace.study.execution.estimate import estimate
from subspace.study.execution.plan import Plan, read_intact
from subspace.study.results.store import Record

Points = Annotated[float, typer.Option(help="the difference between two methods to see, in points of test accuracy")]


def plan(
    asked: options.Asked = NOTHING,
    out: Out = OUT,
    launcher: Launcher = "pool",
    launch: Launch = NOTHING,
    retry: Retry = False,
    points: Points = 3.0,
) -> None:
    """Say what would run, how long it takes and how many seeds it needs, by finished runs; train nothing.

    All that a study names is checked, so the modules of its import paths are run.
    """
    with options.sentences():
        found = Plan.of(options.read_study(asked), out, launcher, options.read_settings(launch))
        missing = found.unfinished(Callback(), retry)
        if not points > 0:
            raise ValueError(f"points must be above 0, got {points}")
        typer.echo(str(estimate(missing, found.store, found.launcher.capacity or len(missing))))
        typer.echo(tell_seeds(read_intact(found.runs, found.store, typer.echo), points))


def tell_seeds(records: list[Record], points: float) -> str:
    """How many seeds show a difference of so many points, at every size, by the records of finished runs."""
    from subspace.study.reports.formats import size_in_figures
    from subspace.study.results.comparisons import MOST, seeds_needed, typical_spreads
    from subspace.study.results.tables import runs_table

    asked = f"seeds to see a difference of {points:g} points (paired, at the level of 5 %, in 4 of 5 studies)"
    found = typical_spreads(runs_table(records))
    if not found:
        few = ", ".join(f"{seeds_needed(times, 1)} for {times}" for times in (1, 2, 4))
        return (
            f"{asked}: unknown until two methods have two seeds each; in standard deviations of the difference: {few}"
        )
    counts = {size: seeds_needed(points / 100, spread) for size, spread in found.items()}
    words = (
        f"{count if count < MOST else f'over {MOST:,}'} at {size[0]} {size_in_figures(size)}"
        for size, count in counts.items()
    )
    return f"{asked}: {', '.join(words)}"
