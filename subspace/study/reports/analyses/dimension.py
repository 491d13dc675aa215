"""The intrinsic dimension as tables and a figure: performance against dim, the target, and the interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from subspace._base.files import write_atomically
from subspace.study.reports.figures import images
from subspace.study.reports.figures.looks import BLUE, VERMILLION
from subspace.study.reports.figures.plots import GREY
from subspace.study.reports.report import csv
from subspace.study.results.dimension import Dimension
from subspace.study.results.disk import storage

COLUMNS, WIDTH = 3, 58  # panels in a row, and letters of a line above one


def write_dimensions(folder: Path, found: Sequence[Dimension]) -> pd.DataFrame:
    """Write dimension.csv, dimension-runs.csv and dimension-1 as PNG and SVG; returns the first table."""
    table: pd.DataFrame = pd.DataFrame([each.row() for each in found])
    runs = pd.DataFrame([row for each in found for row in each.trainings()])
    figure = dimension_figure(found)
    with storage(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "dimension.csv", csv(table), durable=False)
        write_atomically(folder / "dimension-runs.csv", csv(runs), durable=False)
        for kind in ("png", "svg"):
            write_atomically(folder / f"dimension-1.{kind}", images.saved(figure, kind), durable=False)
    return table


def dimension_figure(found: Sequence[Dimension]) -> Figure:
    """A panel for each: a point for every training, the target, and the dim with its interval."""
    columns = min(COLUMNS, len(found))
    rows = math.ceil(len(found) / columns)
    with images.style():
        figure = Figure(figsize=(4.4 * columns + 0.4, 3.4 * rows + 0.6), layout="constrained")
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for each, here in zip(found, axes, strict=False):
            _draw(here, each)
        for here in axes[len(found) :]:
            here.set_axis_off()
        note = "points: trainings; line: the share of seeds that reach the target; band: 95 % interval of the dim"
        figure.supxlabel(note, fontsize=8.5, color=GREY, x=0.01, ha="left")
    return figure


def _draw(here: Axes, found: Dimension) -> None:
    points = list(found.trainings())
    here.set_xscale("log")
    here.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    here.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    here.xaxis.set_minor_formatter(NullFormatter())
    here.plot([p["dim"] for p in points], [p["performance"] for p in points], "o", color=BLUE, alpha=0.6, ms=4)
    here.axhline(found.target, color="black", linestyle="--", linewidth=1)
    if found.curve:
        low, high = found.curve.interval()
        if found.curve.seeds > 1:
            here.axvspan(low, high, color=VERMILLION, alpha=0.2, linewidth=0)
        here.axvline(found.curve.dim, color=VERMILLION)
        dims = np.geomspace(min(p["dim"] for p in points), max(p["dim"] for p in points), 400)
        here.plot(dims, [found.curve.share(float(dim)) for dim in dims], color=GREY, linewidth=1)
    what = f"{found.run.label}: " + (f"dim {found.curve.dim:,.0f}" if found.curve else "no dim found")
    title = "\n".join(fill(line, WIDTH) for line in (what, f"{found.run.model} on {found.run.data}"))
    here.set_title(title, loc="left", fontsize=9)
    here.set_xlabel("dim", fontsize=9)
    here.set_ylabel("accuracy, share of ordinary training's", fontsize=9)
