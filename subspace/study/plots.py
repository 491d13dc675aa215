"""The picture of a study: test accuracy against density, one line per method with its band over seeds.

Up to `TOGETHER` methods share one plot; more are drawn in a panel for each family, the others' lines in grey behind.
"""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from subspace.study.methods import METHODS

# Okabe and Ito's colours, told apart with every kind of colour vision; the markers differ too.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
MARKERS = "osD^vp"
GREY, PALE = "#555555", "#D8D8D8"
TOGETHER = len(COLOURS)


def accuracy_against_density(table: pd.DataFrame, title: str, classes: int = 10) -> Figure:
    """A `tables.summary_table` as a picture: lines are means over seeds, bands run from the worst seed to the best."""
    table = table.assign(**{name: 100 * table[name] for name in ("mean", "min", "max")})
    table = table.assign(family=[METHODS[name].family for name in table["method"]])
    if table["method"].nunique() <= TOGETHER:
        figure = Figure(figsize=(8.6, 4.8), layout="constrained")
        axes = figure.add_subplot()
        draw(axes, table, table, classes)
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    else:
        figure = panels(table, classes)
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    seeds = int(table["seeds"].max())
    note = f"lines: mean over {seeds} seeds; bands: from the worst seed to the best" if seeds > 1 else "one seed"
    figure.supxlabel(note, fontsize=8.5, color=GREY, x=0.01, ha="left")
    return figure


def panels(table: pd.DataFrame, classes: int) -> Figure:
    """A panel for each family of methods, the dense network in all of them."""
    levels = table["density"].isna()
    families = list(dict.fromkeys(table["family"][~levels])) or ["dense"]
    columns = min(3, len(families))
    rows = math.ceil(len(families) / columns)
    figure = Figure(figsize=(4.9 * columns, 3.5 * rows + 0.6), layout="constrained")
    for place, family in enumerate(families):
        axes = figure.add_subplot(rows, columns, place + 1)
        draw(axes, table[levels | (table["family"] == family)], table, classes)
        axes.set_title(family, loc="left", fontsize=11)
        if place % columns:
            axes.set_ylabel("")
        if place + columns < len(families):
            axes.set_xlabel("")
    return figure


def draw(axes: Axes, table: pd.DataFrame, others: pd.DataFrame, classes: int) -> None:
    """The methods of a table in colours, and all methods behind them in grey."""
    frame(axes, sorted(others["density"].dropna().unique()))
    axes.axhline(100 / classes, color=GREY, linestyle=":", linewidth=1.2)
    axes.text(0.01, 100 / classes + 1, "chance", color=GREY, fontsize=9, transform=axes.get_yaxis_transform())
    drawn = set(table["method"])
    for name, lines in others.groupby("method", sort=False):
        if name not in drawn:
            lines = lines.sort_values("density")
            axes.plot(lines["density"], lines["mean"], color=PALE, linewidth=1.2, zorder=1)
    ends = []
    for place, (name, lines) in enumerate(table.groupby("method", sort=False)):
        line = level if lines["density"].isna().all() else curve
        ends.append((*line(axes, lines.sort_values("density"), place), METHODS[str(name)].label))
    name_lines(axes, ends)


def level(axes: Axes, lines: pd.DataFrame, place: int) -> tuple[float, str]:
    """The dense network: a horizontal line with its band. Returns its height and colour."""
    line = lines.iloc[0]
    axes.axhspan(line["min"], line["max"], color="black", alpha=0.15, linewidth=0)
    axes.axhline(line["mean"], color="black", linestyle="--", linewidth=1.5)
    return float(line["mean"]), "black"


def curve(axes: Axes, lines: pd.DataFrame, place: int) -> tuple[float, str]:
    """A method: its line, markers and band. Returns its height at the lowest density, and its colour."""
    x, y, colour = lines["density"], lines["mean"], COLOURS[place % len(COLOURS)]
    axes.plot(x, y, color=colour, marker=MARKERS[place % len(MARKERS)], markeredgecolor="white", linewidth=2, zorder=3)
    axes.fill_between(x, lines["min"], lines["max"], color=colour, alpha=0.18, linewidth=0)
    return float(y.iloc[0]), colour


def frame(axes: Axes, densities: list[float]) -> None:
    """Axes without clutter; density falls to the right, where the methods come apart."""
    axes.set_xscale("log")
    axes.set_xticks(densities, [f"{100 * density:g} %" for density in densities])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.invert_xaxis()
    axes.margins(x=0.02)
    axes.set_ylim(0, 101)
    axes.set_xlabel("density: share of the weights that train (log scale)")
    axes.set_ylabel("test accuracy, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)


def name_lines(axes: Axes, ends: list[tuple[float, str, str]], gap: float = 5.0) -> None:
    """Write each line's name beside its right end, moved up where names would touch, with a stroke of its colour."""
    beside, height = axes.get_yaxis_transform(), -gap
    for end, colour, label in sorted(ends):
        height = max(end, height + gap)
        axes.plot([1, 1.04], [end, height], color=colour, linewidth=2, transform=beside, clip_on=False)
        axes.text(1.05, height, label, va="center", fontsize=9, transform=beside)
