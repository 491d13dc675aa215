"""The picture of a study: test accuracy against density, one line per method with its band over seeds."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from subspace.study.methods import METHODS

# Okabe and Ito's colours, told apart with every kind of colour vision; the markers differ too.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
MARKERS = "osD^vP"
GREY = "#555555"


def accuracy_against_density(table: pd.DataFrame, path: Path, title: str, classes: int = 10) -> None:
    """Draw a `tables.summary_table` as a PNG: lines are means over seeds, bands run from the worst seed to the best."""
    figure = Figure(figsize=(8.6, 4.8), layout="constrained")
    axes = figure.add_subplot()
    ends = {"chance": (100 / classes, GREY)}
    axes.axhline(100 / classes, color=GREY, linestyle=":", linewidth=1.2)
    table = table.assign(**{name: 100 * table[name] for name in ("mean", "min", "max")})
    for place, (name, lines) in enumerate(table.groupby("method", sort=False)):
        label = METHODS[str(name)].label
        if lines["density"].isna().all():
            ends[label] = (level(axes, lines), "black")
        else:
            ends[label] = (curve(axes, lines.sort_values("density"), place), COLOURS[place % len(COLOURS)])
    frame(axes, sorted(table["density"].dropna().unique()))
    name_lines(axes, ends)
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    note = f"lines: mean over {int(table['seeds'].max())} seeds; bands: worst to best seed"
    figure.supxlabel(note, fontsize=8.5, color=GREY, x=0.01, ha="left")
    figure.savefig(path, dpi=160)


def level(axes: Axes, lines: pd.DataFrame) -> float:
    """The dense network: a horizontal line with its band. Returns its height."""
    line = lines.iloc[0]
    axes.axhspan(line["min"], line["max"], color="black", alpha=0.12, linewidth=0)
    axes.axhline(line["mean"], color="black", linestyle="--", linewidth=1.5)
    return float(line["mean"])


def curve(axes: Axes, lines: pd.DataFrame, place: int) -> float:
    """A method: its line, markers and band. Returns its height at the lowest density."""
    colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
    axes.plot(
        lines["density"], lines["mean"], color=colour, marker=marker, markeredgecolor="white", linewidth=2, zorder=3
    )
    axes.fill_between(lines["density"], lines["min"], lines["max"], color=colour, alpha=0.16, linewidth=0)
    return float(lines["mean"].iloc[0])


def frame(axes: Axes, densities: list[float]) -> None:
    """Axes without clutter; density falls to the right, as methods are told apart where it is lowest."""
    axes.set_xscale("log")
    axes.set_xticks(densities, [f"{100 * density:g} %" for density in densities])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.invert_xaxis()
    axes.set_ylim(0, 102)
    axes.set_xlabel("density: trained weights / all weights (log scale)")
    axes.set_ylabel("test accuracy, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)


def name_lines(axes: Axes, ends: dict[str, tuple[float, str]], gap: float = 5.0) -> None:
    """Write each line's name at its right end, moved up where names would touch."""
    height = -gap
    for label, (end, colour) in sorted(ends.items(), key=lambda item: item[1][0]):
        height = max(end, height + gap)
        axes.annotate(label, (1.02, height), xycoords=("axes fraction", "data"), color=colour, va="center", fontsize=9)
