"""The pictures: speed-up over sizes and densities, cost growth over q, bars of networks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from subspace.study.reports.figures.plots import plain

# Okabe and Ito's colours, told apart with every kind of colour vision.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
GREY = "#555555"


def heat_map(table: pd.DataFrame, title: str) -> Figure:
    """Speed-up over dense: layers down, in the table's order, density of S across; one number in each field."""
    grid = table.pivot_table(index="layer", columns="density", values="over dense").loc[
        list(dict.fromkeys(table["layer"]))
    ]
    figure = Figure(figsize=(3.4 + 1.0 * len(grid.columns), 1.1 + 0.34 * len(grid)), layout="constrained")
    axes = figure.add_subplot()
    bound = max(10.0, float(np.nanmax(grid)), 1 / float(np.nanmin(grid)))
    axes.imshow(grid, norm=LogNorm(1 / bound, bound), cmap="RdBu", aspect="auto")
    axes.set_xticks(range(len(grid.columns)), [f"{100 * density:g} %" for density in grid.columns])
    axes.set_yticks(range(len(grid)), list(grid.index))
    for y, x in np.ndindex(*grid.shape):
        value = float(grid.iloc[y, x])
        pale = abs(math.log(value)) > 0.6 * math.log(bound)
        axes.text(x, y, f"{value:.3g}", ha="center", va="center", color="white" if pale else "black")
    axes.set_xlabel("density of S")
    figure.suptitle(title, x=0.02, ha="left", fontsize=10)
    return figure


def growth(table: pd.DataFrame, floor: Sequence[tuple[int, float]], title: str) -> Figure:
    """Seconds against q on log axes, one line a variant, with an n log n line and the memory floor."""
    figure = Figure(figsize=(7.6, 4.8), layout="constrained")
    axes = figure.add_subplot()
    for (name, lines), colour in zip(table.groupby("line", sort=False), COLOURS, strict=False):
        axes.plot(lines["q"], lines["seconds"], marker="o", color=colour, label=str(name))
        axes.fill_between(lines["q"], lines["low"], lines["high"], color=colour, alpha=0.2, linewidth=0)
    fastest = table[table["q"] == table["q"].max()].nsmallest(1, "seconds").iloc[0]
    q = np.array(sorted(set(table["q"])), dtype=float)
    scale = float(fastest["seconds"] / (fastest["q"] * math.log2(fastest["q"])))
    axes.plot(q, scale * q * np.log2(q), color=GREY, linestyle="--", label="n log n")
    axes.plot(*zip(*floor, strict=True), color=GREY, linestyle=":", label="memory floor")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("q, of a q x q layer")
    axes.set_ylabel("seconds, forward and backward")
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure


def bars(table: pd.DataFrame, title: str) -> Figure:
    """The time of every variant of every case in that of its first variant, with the quartiles."""
    unit = table["case"].map(table.groupby("case")["seconds"].first())
    table = table.assign(**{name: table[name] / unit for name in ("seconds", "low", "high")})
    cases = list(dict.fromkeys(table["case"]))
    variants = list(dict.fromkeys(table["variant"]))
    figure = Figure(figsize=(2.5 + 0.4 * len(table), 4.2), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(variants)
    for place, name in enumerate(variants):
        mine = table[table["variant"] == name]
        x = [cases.index(case) + (place - (len(variants) - 1) / 2) * width for case in mine["case"]]
        error = [mine["seconds"] - mine["low"], mine["high"] - mine["seconds"]]
        axes.bar(x, mine["seconds"], width, yerr=error, label=name, color=COLOURS[place % len(COLOURS)])
    axes.set_xticks(range(len(cases)), cases, rotation=30, ha="right", rotation_mode="anchor")
    axes.axhline(1, color="black", lw=0.8)
    axes.set_ylabel(f"time, {variants[0]} = 1")
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure


def against_bytes(drawn: Figure, axes: Axes, title: str, what: str, up: str) -> None:
    """Name the axes of a picture of something over the bytes of files, and put its legend beside it."""
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    plain(axes)
    axes.set_xlabel(f"bytes of the file{what} (log scale)")
    axes.set_ylabel(up)
    drawn.legend(loc="outside right center", fontsize=9, frameon=False)
    drawn.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
