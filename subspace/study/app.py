"""The options of `subspace study`, and what one call does: train what is missing, then table and picture."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from subspace.study.config import Run, Study, Training
from subspace.study.live import LiveProgress
from subspace.study.methods import METHODS
from subspace.study.plots import accuracy_against_density
from subspace.study.progress import Progress, duration
from subspace.study.runner import carry_out, unfinished
from subspace.study.store import Store
from subspace.study.tables import printed, runs_table, summary_table

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)
DEFAULT = Study()


@app.callback()
def subspace() -> None:
    """Train neural networks in subspaces: every weight as w = d + U theta."""


@app.command()
def study(
    methods: Annotated[str, typer.Option(help="names with commas between")] = ",".join(METHODS),
    densities: Annotated[str, typer.Option(help="fractions in (0, 1] with commas between")] = "0.1,0.01,0.001",
    seeds: Annotated[int, typer.Option(help="how many: seeds 0, 1, ...")] = DEFAULT.seeds,
    epochs: Annotated[int, typer.Option(help="passes over the training images")] = DEFAULT.training.epochs,
    batch: Annotated[int, typer.Option(help="images per step")] = DEFAULT.training.batch,
    learning_rate: Annotated[
        float, typer.Option(help="Adam's, of the dense network; at density P it is divided by the square root of P")
    ] = DEFAULT.training.learning_rate,
    workers: Annotated[int, typer.Option(help="processes, one thread each")] = 2,
    out: Annotated[Path, typer.Option(help="directory of the results; what is finished there is not run again")] = Path(
        "subspace-study"
    ),
) -> None:
    """Compare methods on real images (5,000 MNIST digits, LeNet-5): a table, a picture, and one JSON per run."""
