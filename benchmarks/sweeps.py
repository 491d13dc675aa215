"""The pictures of docs/findings.md that are of several networks or learning rates, as no study's own figures are."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from subspace.study.methods import METHODS
from subspace.study.reports.figures import plots
from subspace.study.reports.figures.looks import assign_looks
from subspace.study.reports.figures.pareto import AXES, YELLOW, front
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
        means = means.sort_index()  # by size, whatever it costs
        look = looks[label] | {"markersize": 5}
        axes.plot(means["x"], 100 * means["y"], label=label, linewidth=1.6, **look)
        axes.fill_between(means["x"], 100 * means["low"], 100 * means["high"], color=look["color"], alpha=0.15, lw=0)


def panels(
    rows: Iterable[str], columns: Iterable[str], title: str, below: str, thousands: bool = False
) -> tuple[Figure, list[list[object]]]:
    """A figure with a titled panel for each row and column; thousands: units for them below the axes."""
    rows, columns = list(rows), list(columns)
    across = min(2.9 * len(columns), 10)  # wider ones are too small to read on a page
    figure = Figure(figsize=(1 + across, 1.3 + 2.5 * len(rows)), layout="constrained")
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
    axes[-1][(len(columns) - 1) // 2].set_xlabel(below)  # once: it is longer than a panel is wide
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    return figure, axes


def named(figure: Figure, axes: list[list[object]]) -> Figure:
    """The figure with the names of its lines below."""
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    return figure


def rates(runs: pd.DataFrame, optimizer: str) -> Figure:
    """Accuracy against an optimizer's learning rate: a row per network, a column per density; dense in all of them.

    Dotted: of Adam the rule of the other studies.
    """
    runs = runs[runs["optimizer"] == optimizer]
    runs = runs.assign(size=runs["learning_rate"], place=runs.apply(setting, axis=1))
    densities = sorted(runs["density"].dropna().unique(), reverse=True)
    columns = [f"density {100 * density:g} %" for density in densities]
    names, order = list(dict.fromkeys(runs["place"])), list(dict.fromkeys(runs["label"]))
    title = f"Test accuracy against the learning rate of {optimizer}"
    figure, axes = panels(names, columns, title, "learning rate (log scale)")
    for row, name in zip(axes, names, strict=True):
        for here, density in zip(row, densities, strict=True):
            own = runs[(runs["place"] == name) & ((runs["density"] == density) | (runs["method"] == DENSE))]
            lines(here, own, "learning_rate", order)
            if optimizer == "Adam":
                here.axvline(1e-3 / density**0.5, color=plots.GREY, linewidth=0.8, linestyle=":")
    return named(figure, axes)


def widths(runs: pd.DataFrame, cost: str) -> Figure:
    """Accuracy of one kind of network in several widths against a cost: a row per kind, a column per method.

    cost: one of `COSTS`, or "time". Yellow: the Pareto front of all methods and widths of a kind.
    """
    column, words = AGAINST[cost]
    options = [json.loads(text) for text in runs["model_options"]]
    runs = runs.assign(
        size=runs["dim"],
        kind=[kind(model, given) for model, given in zip(runs["model"], options, strict=True)],
        label=[width(model, given) for model, given in zip(runs["model"], options, strict=True)],
        method_label=runs["label"],
    )
    kinds, columns = list(dict.fromkeys(runs["kind"])), list(dict.fromkeys(runs["method_label"]))
    order = list(dict.fromkeys(runs["label"]))
    title = f"{runs['model'].iloc[0]} of several widths, with equal numbers of trained weights, against {words}"
    figure, axes = panels(kinds, columns, title, f"{words} (log scale)", thousands=cost != "time")
    if cost == "time":  # which is of one or two decades
        axes[0][0].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for row, name in zip(axes, kinds, strict=True):
        own = runs[runs["kind"] == name]
        means = own.groupby(["method_label", "label", "size"], dropna=False)[[column, "test_accuracy"]].mean()
        best = front(means.rename(columns={"test_accuracy": "mean"}), column)
        for here, method in zip(row, columns, strict=True):
            here.plot(best[column], 100 * best["mean"], color=YELLOW, linewidth=4, drawstyle="steps-post", zorder=1)
            lines(here, own[own["method_label"] == method], column, order)
    return named(figure, axes)


def kind(model: str, options: dict[str, object]) -> str:
    """What networks that differ in width alone have in common, for a title."""
    if model == "mlp":
        return "with batch-norms" if options.get("norm") else "without batch-norms"
    others = {name: value for name, value in options.items() if name not in ("width", "heads")}
    return ", ".join([model, *(f"{name}={value}" for name, value in others.items())])


def width(model: str, options: dict[str, object]) -> str:
    """The width of a network: the units of a perceptron's layers, the first channels or features of others."""
    if model == "mlp":
        return "-".join(map(str, options.get("hidden", [200, 200])))
    return f"width {options.get('width', WIDTHS.get(model, 'as published'))}"


def offset_costs(runs: pd.DataFrame) -> Figure:
    """Accuracy against the FLOPs of a forward pass, a point per offset: rows are networks, columns densities."""
    runs = runs.assign(size=0, place=runs.apply(setting, axis=1))
    runs["label"] = [json.loads(options).get("offset", METHODS[DENSE].label) for options in runs["options"]]
    densities = sorted(runs["density"].dropna().unique(), reverse=True)
    columns = [f"density {100 * density:g} %" for density in densities]
    names, order = list(dict.fromkeys(runs["place"])), list(dict.fromkeys(runs["label"]))
    below = "FLOPs of a forward pass (log scale)"
    figure, axes = panels(names, columns, "Test accuracy against what the offset costs", below, thousands=True)
    for row, name in zip(axes, names, strict=True):
        for here, density in zip(row, densities, strict=True):
            own = runs[(runs["place"] == name) & ((runs["density"] == density) | (runs["method"] == DENSE))]
            lines(here, own, "flops_forward", order)
            for label, some in own.groupby("label", sort=False):
                spread = 100 * some["test_accuracy"]
                cost, color = some["flops_forward"].iloc[0], assign_looks(order)[label]["color"]
                here.vlines(cost, spread.min(), spread.max(), color=color, linewidth=1)
    return named(figure, axes)


def bases(runs: pd.DataFrame) -> Figure:
    """Error by the method that chooses, a mark per basis, from the worst seed to the best: rows are networks, columns
    densities.
    """
    runs = runs.assign(error=100 * (1 - runs["test_accuracy"]))
    runs = runs.assign(place=runs.apply(setting, axis=1))
    runs["basis"] = [json.loads(options).get("basis", "identity") for options in runs["options"]]
    runs["chooser"] = runs["label"].str.replace(r", basis=\w+", "", regex=True)
    densities = sorted(runs["density"].dropna().unique(), reverse=True)
    names, dense = list(dict.fromkeys(runs["place"])), runs["method"] == DENSE
    choosers, order = (list(dict.fromkeys(runs.loc[~dense, name])) for name in ("chooser", "basis"))
    figure = Figure(figsize=(1 + 3.9 * len(densities), 1.3 + 2.2 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), len(densities), sharex=True, sharey=True, squeeze=False)
    looks = assign_looks(order)
    for row, name in zip(axes, names, strict=True):
        for here, density in zip(row, densities, strict=True):
            here.set_title(f"{name}\ndensity {100 * density:g} %", loc="left", fontsize=9)
            plots.plain(here)
            own = runs[(runs["place"] == name) & (runs["density"] == density)]
            baseline = runs.loc[(runs["place"] == name) & dense, "error"]
            here.axhspan(baseline.min(), baseline.max(), color="black", alpha=0.15, lw=0)
            here.axhline(baseline.mean(), color="black", linestyle="--", linewidth=1.2, label="dense")
            for place, basis in enumerate(order):
                found = own[own["basis"] == basis].groupby("chooser")["error"].agg(["mean", "min", "max"])
                low, middle, high = (found[each].reindex(choosers) for each in ("min", "mean", "max"))
                at = [x + 0.13 * (place - (len(order) - 1) / 2) for x in range(len(choosers))]
                look = looks[basis] | {"linestyle": "none", "markersize": 6}
                here.errorbar(at, middle, [middle - low, high - middle], label=BASES[basis], elinewidth=1.4, **look)
        row[0].set_ylabel("test error, % (log scale)")
    axes[0][0].set_yscale("log")
    axes[0][0].set_yticks([2, 5, 10, 20, 50], ["2", "5", "10", "20", "50"])
    axes[0][0].yaxis.set_minor_formatter(NullFormatter())
    axes[-1][0].set_xticks(range(len(choosers)), choosers)
    title = "Test error by the basis whose coefficients are chosen"
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    return named(figure, axes)


def bits_of_text(runs: pd.DataFrame) -> Figure:
    """Bits per character of the test text against density, which falls to the right, of one data set and network."""
    runs = runs.assign(bits=runs["test_loss"] / math.log(2))
    groups = runs.groupby(["method", "label", "density"], dropna=False, sort=False)["bits"]
    table = groups.agg(mean="mean", min="min", max="max", seeds="size").reset_index().assign(failed=0)

    def draw(axes: Axes, own: pd.DataFrame, others: pd.DataFrame) -> None:
        plots.plain(axes)
        plots.size_axis(axes, sorted(others["density"].dropna().unique()), "density")
        axes.set_ylim(others["min"].min() - 0.1, others["max"].max() + 0.1)
        axes.set_ylabel("bits per character of the test text")
        curves = [*plots.draw_dense(axes, own), *plots.draw_curves(axes, own, others, "density")]
        plots.name_lines(axes, curves)

    title = f"Bits per character, less is better: {setting(runs.iloc[0])}"
    return plots.figure_of(table, title, plots.bands(table), draw)


BASES = {"identity": "weights", "dct": "DCT", "haar": "Haar", "hadamard": "Hadamard", "singular": "singular vectors"}
AGAINST = {cost: (COSTS[cost], AXES[cost]) for cost in ("bytes", "flops")}
AGAINST["time"] = ("seconds", "seconds of training")
WIDTHS = {"resnet20": 16, "vit_tiny": 192}  # where none is given
SWEEPS: dict[str, Callable[[pd.DataFrame], Figure]] = {
    "rates": lambda runs: rates(runs, "Adam"),
    "rates-sgd": lambda runs: rates(runs, "SGD"),
    "offset-costs": offset_costs,
    "bases": bases,
    "bits": bits_of_text,
    "widths-bytes": lambda runs: widths(runs, "bytes"),
    "widths-flops": lambda runs: widths(runs, "flops"),
    "widths-time": lambda runs: widths(runs, "time"),
}
OF_SEVERAL_STUDIES = ("rates", "rates-sgd", "offset-costs")  # all those whose names begin as the first one's
