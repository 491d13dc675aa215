"""What all figures share: colours, panels, names at the ends of lines; and the figure of accuracy against size.

Up to `TOGETHER` methods besides the dense network share one plot; more are drawn in a panel for each family, with the
other lines in grey behind. Lines are means over seeds, bands run from the worst seed to the best. All of it is
matplotlib's object interface: no backend is chosen and no global state is left changed.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullLocator

from subspace.study.methods import method
from subspace.study.reports.figures.images import style
from subspace.study.reports.figures.looks import assign_looks
from subspace.study.reports.formats import size_in_figures
from subspace.study.results.summary import DENSE, sizes

GREY, PALE = "#555555", "#D8D8D8"
TOGETHER = 8  # the seven curves of Price and Tanner's talk, and one more
Draw = Callable[[Axes, pd.DataFrame, pd.DataFrame], None]
End = tuple[float, float, str, str]  # where a line ends (x, y), its colour and its name


def family(name: str) -> str:
    """What a method is drawn with."""
    try:
        return method(name).family
    except ValueError:  # one of the user's own, which is not there any more
        return "others"


def figure_of(table: pd.DataFrame, title: str, note: str, draw: Draw) -> Figure:
    """One plot of all methods or one for each family, by draw(axes, its rows, all rows); note: below all."""
    others = table[table["method"] != DENSE]
    families = list(dict.fromkeys(others["method"].map(family)))
    with style():
        if others["label"].nunique() <= TOGETHER or len(families) == 1:
            figure = Figure(figsize=(8.6, 4.8), layout="constrained")
            draw(figure.add_subplot(), table, table)
        else:
            columns = min(3, len(families))
            height = math.ceil(len(families) / columns)
            figure = Figure(figsize=(4.9 * columns, 3.5 * height + 0.6), layout="constrained")
            for place, one in enumerate(families):
                axes = figure.add_subplot(height, columns, place + 1)
                draw(axes, table[(table["method"] == DENSE) | (table["method"].map(family) == one)], table)
                axes.set_title(one, loc="left", fontsize=11)
                if place % columns:
                    axes.set_ylabel("")
                if place + columns < len(families):
                    axes.set_xlabel("")
        title = textwrap.fill(title, 85 if len(figure.axes) < 2 else 150)
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        figure.supxlabel(note, fontsize=8.5, color=GREY, x=0.01, ha="left")
        layout = figure.get_layout_engine()
        if layout is not None:  # a layout starts from the one before: done once, saving is the same every time
            layout.execute(figure)
        figure.set_layout_engine("none")
    return figure


def bands(table: pd.DataFrame) -> str:
    """What lines and bands are, in words, and what is not drawn."""
    most, failed = int(table["seeds"].max()), int(table["failed"].sum())
    words = f"lines: mean over {most} seeds; bands: from the worst seed to the best" if most > 1 else "one seed"
    return words + (f"; not drawn: {failed} failed run{'s' * (failed > 1)}" if failed else "")


def accuracy_against_size(table: pd.DataFrame, title: str, size: str = "density") -> Figure:
    """A `summary.summary_table` of one data set and network against density, dim or bytes, which fall to the right."""
    table = finished(table)
    table = table[table[size].notna() | (table["method"] == DENSE)]

    def draw(axes: Axes, own: pd.DataFrame, others: pd.DataFrame) -> None:
        frame(axes, others)
        size_axis(axes, [value for name, value in sizes(others) if name == size], size)
        if size == "density" and densities_differ(table):
            axes.set_xlabel("density asked for (what is realised differs: see the table; log scale)")
        draw_others(axes, own, others, size)
        name_lines(axes, [*draw_dense(axes, own), *draw_curves(axes, own, others, size)])

    return figure_of(table, title, bands(table), draw)


def densities_differ(table: pd.DataFrame) -> bool:
    """Whether a density that was realised is more than a tenth, and two weights, from that asked for."""
    away = (table["realised_density"] - table["density"]).abs()
    return bool((away > (0.1 * table["density"]).clip(lower=2 / table["weights"])).any())


def finished(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that have an accuracy, in per cent; the failed runs of the others are still counted, in the first."""
    rows: pd.DataFrame = table[table["seeds"] > 0]
    rows = rows.assign(**{name: 100 * rows[name] for name in ("mean", "min", "max")})
    if len(rows):
        lost = int(table.loc[table["seeds"] == 0, "failed"].sum())
        rows.loc[rows.index[0], "failed"] += lost
    return rows


def frame(axes: Axes, table: pd.DataFrame) -> None:
    """Axes of accuracy without clutter, with the accuracy of guessing where the number of classes is known."""
    axes.set_ylim(0, 101)
    axes.set_ylabel("test accuracy, %")
    plain(axes)
    if "classes" in table and table["classes"].notna().any():
        chance = 100 / float(table["classes"].max())
        axes.axhline(chance, color=GREY, linestyle=":", linewidth=1.2)
        axes.text(0.01, chance + 1, "chance", color=GREY, fontsize=9, transform=axes.get_yaxis_transform())


def plain(axes: Axes) -> None:
    """No box, a pale grid of heights."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)


def size_axis(axes: Axes, values: Sequence[float], size: str) -> None:
    """A logarithmic axis of densities or dims that falls to the right, where the methods come apart."""
    axes.set_xscale("log")
    span = math.log(max(values) / min(values)) if values else 0
    spec, shown = axes.get_subplotspec(), list[float]()
    room = 12 if spec is None or spec.get_gridspec().ncols == 1 else 5  # labels that there is room for
    for value in sorted(values):
        if not shown or math.log(value / shown[-1]) >= span / room:
            shown.append(value)
    axes.set_xticks(shown, [size_in_figures((size, value)) for value in shown])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.02)
    if values:
        axes.set_xlim(max(values) * 1.06 ** max(span, 1), min(values) / 1.06 ** max(span, 1))
    what = {
        "density": "density: share of the weights that train",
        "dim": "dim: how many numbers train",
        "bytes": "bytes of the file at most",
    }[size]
    axes.set_xlabel(f"{what} (log scale)")


def cost_axis(axes: Axes, values: pd.Series, label: str) -> None:
    """A logarithmic axis of bytes or FLOPs."""
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if values.max() / values.min() < 20:  # perhaps there is no power of ten within
        axes.xaxis.set_minor_formatter(EngFormatter(sep=""))
        axes.tick_params(axis="x", which="minor", labelsize=8)
    axes.set_xlabel(f"{label} (log scale)")


def draw_others(axes: Axes, own: pd.DataFrame, others: pd.DataFrame, x: str) -> None:
    """The lines of the methods that are drawn elsewhere, in grey."""
    drawn = set(own["label"])
    for label, lines in others.groupby("label", sort=False):
        if label not in drawn:
            lines = lines.sort_values(x)
            axes.plot(lines[x].astype(float), lines["mean"], color=PALE, linewidth=1.2, zorder=1)


def draw_dense(axes: Axes, table: pd.DataFrame) -> list[End]:
    """The dense network: a horizontal line with its band."""
    ends: list[End] = []
    for _, line in table[table["method"] == DENSE].iterrows():
        axes.axhspan(line["min"], line["max"], color="black", alpha=0.15, linewidth=0)
        axes.axhline(line["mean"], color="black", linestyle="--", linewidth=1.5)
        ends.append((axes.get_xlim()[1], float(line["mean"]), "black", line["label"]))
    return ends


def draw_curves(axes: Axes, own: pd.DataFrame, others: pd.DataFrame, x: str) -> list[End]:
    """The methods of `own` but the dense network: line, markers and band of each; others: all of the figure."""
    looks, ends = assign_looks(others["label"]), list[End]()
    for label, lines in own[own["method"] != DENSE].groupby("label", sort=False):
        ends.append(draw_curve(axes, lines.sort_values(x), x, looks[str(label)] | {"linewidth": 2}))
    return ends


def draw_curve(axes: Axes, lines: pd.DataFrame, x: str, style: dict[str, Any]) -> End:
    """One method: its means, and the band from the worst seed to the best."""
    along, colour, right = lines[x].astype(float), style["color"], 0 if axes.xaxis_inverted() else -1
    axes.plot(along, lines["mean"], **style, zorder=3)
    axes.fill_between(along, lines["min"], lines["max"], color=colour, alpha=0.18, linewidth=0)
    return float(along.iloc[right]), float(lines["mean"].iloc[right]), colour, str(lines["label"].iloc[0])


def name_lines(axes: Axes, ends: Sequence[End], gap: float = 0.055) -> None:
    """Write every line's name to the right of the plot, near the height of its end, and join the two by a stroke."""
    to_axes = axes.transAxes.inverted()
    where = [to_axes.transform(axes.transData.transform((x, y))) for x, y, _, _ in ends]
    order = sorted(range(len(ends)), key=lambda place: (where[place][1], -place))
    for place, height in zip(order, spaced([where[place][1] for place in order], gap), strict=True):
        (x, y), (_, _, colour, label) = where[place], ends[place]
        stroke: dict[str, Any] = {
            "color": colour,
            "linewidth": 1.1,
            "linestyle": ":",
            "transform": axes.transAxes,
            "clip_on": False,
        }
        axes.plot([x, 1.04], [y, height], zorder=2, **stroke)
        axes.text(1.05, height, cut(label), va="center", fontsize=9, transform=axes.transAxes)


def cut(label: str, most: int = 36) -> str:
    """A label without its middle where it is too long for a figure; tables have all of it.

    >>> cut("RigL, ERK, delta_t=100, fraction=0.3, t_end=0.75")
    'RigL, ERK, delta_…on=0.3, t_end=0.75'
    """
    return label if len(label) <= most else f"{label[: most // 2 - 1]}…{label[most // 2 - most :]}"


def spaced(heights: Sequence[float], gap: float, top: float = 1.0) -> list[float]:
    """Rising heights moved as little as needed for them to be a gap apart: up first, down again from above the top.

    >>> spaced([0.0, 0.0, 0.75], 0.25), spaced([0.75, 1.0], 0.5)
    ([0.0, 0.25, 0.75], [0.5, 1.0])
    """
    moved: list[float] = []
    for height in heights:
        moved.append(max(float(height), moved[-1] + gap) if moved else float(height))
    limit = top
    for place in reversed(range(len(moved))):
        moved[place] = min(moved[place], limit)
        limit = moved[place] - gap
    return moved
