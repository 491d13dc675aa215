"""What the commands share: their options, the study that they are given, and how they end."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from subspace.study.entries.words import printable
from subspace.study.execution.plan import Plan
from subspace.study.results.disk import StorageError
from subspace.study.spec import files
from subspace.study.spec.study import Study

Asked = Annotated[list[str], typer.Argument(metavar="[STUDY] [KEY=VALUE]...", help="a file or preset, and settings")]
Out = Annotated[Path, typer.Option(help="folder of results")]
Launcher = Annotated[str, typer.Option(help="pool, inline, ray or slurm")]
Launch = Annotated[list[str], typer.Option(help="KEY=VALUE, an option of the launcher, as workers=2; may be repeated")]
Retry = Annotated[bool, typer.Option("--retry", help="try runs again that have failed twice")]
At = Annotated[str, typer.Option(help="compare at equal bytes, flops, memory, stored or inference")]
NOTHING: list[str] = []
OUT, FIRST = Path("subspace-study"), "first/resnet20"  # the folder of results, and the study where none is named


def read_study(asked: Sequence[str], default: str = FIRST) -> Study:
    """The study of the command line: a file's or a preset's, or else the default one, with settings.

    In the default one dims or bytes take the place of its densities.
    """
    if asked and not re.match(r"[\w.]*=", asked[0]):
        return files.load(asked[0], asked[1:])
    table = files.read(default)
    if any(setting.startswith(("dims=", "bytes=")) for setting in asked):
        table.pop("densities", None)
    return files.load(table, asked)


def read_settings(settings: Sequence[str]) -> dict[str, object]:
    """A table of settings alone."""
    return files.assigned({}, settings)


def plain_console(quiet: bool = False) -> Console:
    """For tables and lines without control codes, 100 characters wide."""
    return Console(quiet=quiet, width=100, color_system=None)


@contextmanager
def sentences(values: bool = True) -> Iterator[None]:
    """End where the disk fails and, with values, on a bad one with one sentence."""
    try:
        yield
    except StorageError as error:
        told = f"Stopped: {error}. What is finished is kept, and the same command goes on from there."
        typer.echo(printable(told), err=True)
        raise typer.Exit(1) from None
    except (ValueError, OSError) as error:
        if not values or isinstance(error, BrokenPipeError):  # which is no fault: nobody reads on, as after `| head`
            raise
        raise typer.BadParameter(printable(" ".join(str(error).split()))) from None


@contextmanager
def interruptible(plan: Plan) -> Iterator[None]:
    """End on Ctrl-C and SIGTERM with a sentence on how far the study is."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        done = sum(record["status"] == "finished" for _, record in plan.results())
        typer.echo(f"Stopped with {done} of {len(plan.runs)} runs finished: the same command goes on from there.")
        raise typer.Exit(130) from None
