"""Accuracy against what it costs, and which entries no other beats in both."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from subspace.study.reports.figures import plots
from subspace.study.results.equal_cost import COSTS
from subspace.study.results.summary import DENSE

YELLOW = "#F0E442"
AXES = {
    "bytes": "bytes of the checkpoint file",
    "stored": "bytes of the weights as held in training",
    "flops": "FLOPs to choose U and to train",
    "memory": "peak bytes of a training step",
    "inference": "FLOPs of a forward pass, per sample",
}


def front(table: pd.DataFrame, cost: str) -> pd.DataFrame:
    """The rows that cost less than every row of at least their mean accuracy, by rising cost; without NaN."""
    rows = table.dropna(subset=["mean", cost]).sort_values([cost, "mean"], ascending=[True, False], kind="stable")
    best: pd.DataFrame = rows[rows["mean"] > rows["mean"].cummax().shift(fill_value=float("-inf"))]
    return best


def accuracy_against_cost(table: pd.DataFrame, title: str, cost: str) -> Figure:
    """A `summary.summary_table` of one data set and network against one of `COSTS`, with its Pareto front."""
    column = COSTS[cost]
    table = plots.finished(table)
    table = table[table[column] > 0]

    def draw(axes: Axes, own: pd.DataFrame, others: pd.DataFrame) -> None:
        plots.frame(axes, others)
        plots.cost_axis(axes, others[column], AXES[cost])
        axes.set_xlim(others[column].min() / 1.3, others[column].max() * 1.3)
        best = front(others, column)
        axes.plot(best[column], best["mean"], color=YELLOW, linewidth=5, drawstyle="steps-post", zorder=1.5)
        plots.draw_others(axes, own, others, column)
        ends = plots.draw_curves(axes, own, others, column)
        for _, line in own[own["method"] == DENSE].iterrows():
            band = [[line["mean"] - line["min"]], [line["max"] - line["mean"]]]
            axes.errorbar(line[column], line["mean"], yerr=band, color="black", marker="*", markersize=11)
            ends.append((line[column], line["mean"], "black", line["label"]))
        plots.name_lines(axes, ends)

    note = f"yellow: the Pareto front of all methods; {plots.bands(table)}"
    return plots.figure_of(table, title, note, draw)
