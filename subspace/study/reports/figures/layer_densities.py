"""How the numbers that train are spread over a network's tensors, at one size."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from subspace.study.reports.figures import plots
from subspace.study.reports.figures.looks import assign_looks
from subspace.study.reports.formats import percent
from subspace.study.results.summary import DENSE

NAMED = {1: 24, 3: 10}  # the most tensors that have their names below one plot, and below three in a row
LETTERS = 24  # of a name


def density_per_tensor(tensors: pd.DataFrame, title: str) -> Figure:
    """Rows of a `tables.tensors_table`, of one data set, network and size and with the column method.

    Dots are the mean realised density of a tensor over seeds, in the order of the network; what has no number that
    trains stands below the axis, at "none".
    """
    tensors = tensors[tensors["method"] != DENSE]
    fullest = tensors.loc[tensors["label"] == tensors.groupby("label")["name"].nunique().idxmax(), "name"]
    order = {name: place for place, name in enumerate(dict.fromkeys([*fullest, *tensors["name"]]))}
    tensors = tensors.assign(place=tensors["name"].map(order))  # a method may re-parametrize more tensors than another
    groups = tensors.groupby(["method", "label", "place", "name"], sort=False)["tensor_density"]
    # a theta that several tensors share may have more numbers than one of these
    table = groups.agg(["mean", "min", "max"]).clip(upper=1).reset_index()
    positive = table.loc[table["mean"] > 0, "mean"]
    least = float(positive.min()) if len(positive) else 0.1
    none = least / 3 if (table["mean"] <= 0).any() else None
    names = table.drop_duplicates("place").sort_values("place")
    alone = len(table["method"].map(plots.family).unique()) == 1 or table["label"].nunique() <= plots.TOGETHER
    named = len(names) <= NAMED[1 if alone else 3]

    def draw(axes: Axes, own: pd.DataFrame, others: pd.DataFrame) -> None:
        axes.set_yscale("log")
        axes.set_ylim((none or least) / 1.6, 1.6)
        decades = [10.0**power for power in range(math.floor(math.log10(least)), 1) if 10.0**power >= least / 1.5]
        axes.set_yticks(decades, [percent(decade) for decade in decades])
        axes.yaxis.set_minor_locator(NullLocator())
        plots.plain(axes)
        axes.set_ylabel("realised density (log scale)")
        if none:
            axes.axhline(none * 1.7, color=plots.GREY, linewidth=0.8)
            axes.text(-0.012, none, "none", va="center", ha="right", transform=axes.get_yaxis_transform())
        axes.set_xlim(-0.6, len(names) - 0.4)
        if named:
            below = [plots.cut(name.removesuffix(".weight"), LETTERS) for name in names["name"]]
            axes.set_xticks(range(len(names)), below, fontsize=8)
            axes.tick_params(axis="x", labelrotation=30 if len(names) <= 6 else 90)
        axes.set_xlabel("" if named else "tensor, in the order of the network")
        labels = list(own.groupby("label", sort=False))
        ends: list[plots.End] = []
        known = assign_looks(others["label"])
        for place, (label, lines) in enumerate(labels):
            lines = lines.sort_values("place")
            at = lines["place"].astype(float) + (0.7 * ((place + 0.5) / len(labels) - 0.5) if named else 0)
            look = known[str(label)]
            heights, colour = lines["mean"].where(lines["mean"] > 0, none), look["color"]
            if named:
                axes.plot(at, heights, **look | {"linestyle": "", "markersize": 7}, zorder=3)
                spread = lines["max"] > lines["min"]
                axes.vlines(at[spread], lines["min"][spread].clip(none or least), lines["max"][spread], color=colour)
            else:
                thin = {"linewidth": 0.8, "markersize": 3.5, "markeredgewidth": 0}
                axes.plot(at, heights, **look | thin, zorder=3)
            ends.append((float(at.iloc[-1]), float(heights.iloc[-1]), colour, str(label)))
        plots.name_lines(axes, ends, gap=0.055 if alone else 0.065)

    every_seed = tensors.groupby("label")["seed"].nunique().max()
    note = f"mean over {every_seed} seeds, tensors in the order of the network" if every_seed > 1 else "one seed"
    return plots.figure_of(table, title, note, draw)
