"""Training curves: test accuracy and training loss after every epoch, at one size."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from subspace.study.reports.figures import plots
from subspace.study.results.summary import DENSE

MEASURES = {"test_accuracy": "test accuracy, %", "train_loss": "training loss, nats (log scale)"}


def over_seeds(epochs: pd.DataFrame, measure: str) -> pd.DataFrame:
    """mean, min and max of a figure by method and epoch."""
    groups = epochs.groupby(["method", "label", "epoch"], sort=False)
    table: pd.DataFrame = groups[measure].agg(["mean", "min", "max"]).reset_index().dropna(subset="mean")
    return table


def training_curves(epochs: pd.DataFrame, title: str, measure: str = "test_accuracy") -> Figure:
    """Rows of a `tables.epochs_table`, of one data set, network and size and with the column method, against epochs.

    measure: one of `MEASURES`.
    """
    table = over_seeds(epochs, measure)
    if measure == "test_accuracy":
        table = table.assign(**{name: 100 * table[name] for name in ("mean", "min", "max")})

    def draw(axes: Axes, own: pd.DataFrame, others: pd.DataFrame) -> None:
        if measure == "test_accuracy":
            axes.set_ylim(0, 101)
        else:
            axes.set_yscale("log")
            axes.set_ylim(0.8 * others["min"].clip(lower=1e-6).min(), 1.25 * others["max"].max())
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            if others["max"].max() > 20 * others["min"].min():  # enough powers of ten
                axes.yaxis.set_minor_formatter(NullFormatter())
            else:
                axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
                axes.tick_params(axis="y", which="minor", labelsize=8)
        plots.plain(axes)
        axes.set_ylabel(MEASURES[measure])
        axes.set_xlabel("epoch")
        last = float(others["epoch"].max())
        axes.set_xlim(1 - 0.02 * last, last + 0.02 * last)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        plots.draw_others(axes, own, others, "epoch")
        ends = plots.draw_curves(axes, own, others, "epoch")
        for _, lines in own[own["method"] == DENSE].groupby("label"):
            dense = {"color": "black", "linestyle": "--", "linewidth": 1.5}
            ends.append(plots.draw_curve(axes, lines.sort_values("epoch"), "epoch", dense))
        plots.name_lines(axes, ends)

    seeds = epochs.groupby("label")["seed"].nunique().max()
    note = f"mean over {seeds} seeds; bands: from the worst seed to the best" if seeds > 1 else "one seed"
    return plots.figure_of(table, title, note, draw)
