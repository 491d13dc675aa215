"""The pictures of docs/findings.md that are of several networks or learning rates, as no study's own figures are."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullFormatter

from subspace.study.reports.figures import plots
from subspace.study.reports.figures.looks import assign_looks
from subspace.study.reports.figures.pareto import AXES
from subspace.study.results.equal_cost import COSTS
from subspace.study.results.summary import DENSE, setting


def lines(axes: object, table: pd.DataFrame, x: str, order: list[str]) -> None:
    """Mean test accuracy in per cent against x, a line for each label, with a band from the worst seed to the best."""
    looks = assign_looks(order)
    for label in order:
        own = table[table["label"] == label].groupby("size", dropna=False)
        means = own.agg(
            x=(x, "mean"), y=("test_accuracy", "mean"), low=("test_accuracy", "min"), high=("test_accuracy", "max")
        )
        means = means.sort_values("x")
        look = looks[label] | {"markersize": 5}
        axes.plot(means["x"], 100 * means["y"], label=label, linewidth=1.6, **look)
        axes.fill_between(means["x"], 100 * means["low"], 100 * means["high"], color=look["color"], alpha=0.15, lw=0)


def panels(
    rows: Iterable[str], columns: Iterable[str], title: str, below: str, thousands: bool = False
) -> tuple[Figure, list[list[object]]]:
    """A figure with a titled panel for each row and column; thousands: units for them below the axes."""
    rows, columns = list(rows), list(columns)
    figure = Figure(figsize=(1 + 2.9 * len(columns), 1.3 + 2.5 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), len(columns), sharex=True, sharey=True, squeeze=False)
    for row, name in zip(axes, rows, strict=True):
        for here, column in zip(row, columns, strict=True):
            here.set_title(f"{name}\n{column}", loc="left", fontsize=9)
            here.set_xscale("log")
            here.xaxis.set_major_formatter(EngFormatter(sep="") if thousands else lambda x, _: f"{x:g}")
            here.xaxis.set_minor_formatter(NullFormatter())
            here.set_ylim(0, 101)
            plots.plain(here)
        row[0].set_ylabel("test accuracy, %")
    for here in axes[-1]:
        here.set_xlabel(below)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    return figure, axes


def named(figure: Figure, axes: list[list[object]]) -> Figure:
    """The figure with the names of its lines below."""
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    return figure


def rates(runs: pd.DataFrame) -> Figure:
    """Accuracy against the learning rate: a row per network, a column per density; dense in all of them."""
    runs = runs.assign(size=runs["learning_rate"], place=runs.apply(setting, axis=1))
    densities = sorted(runs["density"].dropna().unique(), reverse=True)
    columns = [f"density {100 * density:g} %" for density in densities]
    names, order = list(dict.fromkeys(runs["place"])), list(dict.fromkeys(runs["label"]))
    figure, axes = panels(
        names, columns, "Test accuracy against the learning rate of Adam", "learning rate (log scale)"
    )
    for row, name in zip(axes, names, strict=True):
        for here, density in zip(row, densities, strict=True):
            own = runs[(runs["place"] == name) & ((runs["density"] == density) | (runs["method"] == DENSE))]
            lines(here, own, "learning_rate", order)
            here.axvline(1e-3 / density**0.5, color=plots.GREY, linewidth=0.8, linestyle=":")
    return named(figure, axes)


def widths(runs: pd.DataFrame, cost: str) -> Figure:
    """Accuracy of perceptrons of several widths against one of `equal.COSTS`: a row per kind, a column per method."""
    options = [json.loads(text) for text in runs["model_options"]]
    runs = runs.assign(
        size=runs["dim"],
        kind=["with batch-norms" if given.get("norm") else "without batch-norms" for given in options],
        label=["-".join(map(str, given.get("hidden", [200, 200]))) for given in options],
        method_label=runs["label"],
    )
    kinds, columns = list(dict.fromkeys(runs["kind"])), list(dict.fromkeys(runs["method_label"]))
    order = list(dict.fromkeys(runs["label"]))
    title = f"Perceptrons of several widths, with equal numbers of trained weights, against {AXES[cost]}"
    figure, axes = panels(kinds, columns, title, f"{AXES[cost]} (log scale)", thousands=True)
    for row, kind in zip(axes, kinds, strict=True):
        for here, method in zip(row, columns, strict=True):
            lines(here, runs[(runs["kind"] == kind) & (runs["method_label"] == method)], COSTS[cost], order)
    return named(figure, axes)


SWEEPS: dict[str, Callable[[pd.DataFrame], Figure]] = {
    "rates": rates,
    "widths-bytes": lambda runs: widths(runs, "bytes"),
    "widths-flops": lambda runs: widths(runs, "flops"),
}
