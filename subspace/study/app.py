"""The options of `subspace study`, and what one call does: train what is missing, then table and picture."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from subspace.study.config import Run, Study, Training
from subspace.study.live import LiveProgress
from subspace.study.methods import BASIC, METHODS
from subspace.study.progress import Progress, duration
from subspace.study.report import records, report
from subspace.study.runner import carry_out, unfinished
from subspace.study.store import Store

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)
DEFAULT = Training()
OUT = Path("subspace-study")


@app.callback()
def subspace() -> None:
    """Train neural networks in subspaces: every weight as w = d + U theta."""


@app.command()
def study(
    methods: Annotated[str, typer.Option(help="names, with commas between, or all")] = ",".join(BASIC),
    densities: Annotated[str, typer.Option(help="fractions in (0, 1], with commas between")] = "0.1,0.01,0.001",
    seeds: Annotated[int, typer.Option(help="how many: seeds 0, 1, ...")] = 3,
    epochs: Annotated[int, typer.Option(help="passes over the training images")] = DEFAULT.epochs,
    batch: Annotated[int, typer.Option(help="images per step")] = DEFAULT.batch,
    learning_rate: Annotated[
        float, typer.Option(help="Adam's for the dense network; at density P, divided by the square root of P")
    ] = DEFAULT.learning_rate,
    workers: Annotated[int, typer.Option(help="processes, of one thread each")] = 2,
    out: Annotated[Path, typer.Option(help="directory of results; what is finished there is not run again")] = OUT,
) -> None:
    """Compare methods on real images (5,000 MNIST digits, LeNet-5): one JSON per run, two tables and a picture."""
    try:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        training = Training(epochs, batch, learning_rate)
        runs = Study(tuple(named(methods)), fractions(densities), seeds, training).runs()
        store = Store(out)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    except OSError as error:
        raise typer.BadParameter(f"out must be a writable directory, got {str(out)!r}: {error.strerror}") from None
    console = Console() if sys.stdout.isatty() else Console(width=100)
    try:
        complete(runs, store, workers, console)
    except KeyboardInterrupt:
        done = sum(record["status"] == "finished" for record in records(runs, store))
        console.print(f"Stopped with {done} of {len(runs)} runs finished: the same command goes on from there.")
        raise typer.Exit(130) from None
    except OSError as error:
        console.print(f"Stopped: {error}. What is finished is kept.", markup=False, soft_wrap=True)
        raise typer.Exit(1) from None
    failures = report(runs, store, console)
    raise typer.Exit(1 if failures else 0)


def listed(text: str) -> list[str]:
    """The words of a list with commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def named(text: str) -> list[str]:
    """Methods with commas between; `all` is each of them."""
    return [name for word in listed(text) for name in (METHODS if word == "all" else [word])]


def fractions(text: str) -> tuple[float, ...]:
    """Numbers with commas between; ValueError naming the first that is none."""
    for word in listed(text):
        try:
            float(word)
        except ValueError:
            raise ValueError(f"density must be in (0, 1], got {word!r}") from None
    return tuple(map(float, listed(text)))


def complete(runs: list[Run], store: Store, workers: int, console: Console) -> None:
    """Train every run that has no finished result."""
    with LiveProgress(console) if console.is_terminal else Progress(console) as progress:
        missing = unfinished(runs, store, progress)
        progress.say(f"{len(runs)} runs, {len(runs) - len(missing)} of them finished already, in {store.folder}")
        progress.expect(missing)
        carry_out(missing, store, workers, progress)
        if missing:
            progress.say(f"{len(missing)} runs in {duration(progress.elapsed)}")
