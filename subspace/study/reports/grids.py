"""The tables of a report: what each column says, and what it sorts by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from subspace.study.reports import formats
from subspace.study.reports.formats import (
    asked_size,
    bar,
    exact,
    format_size,
    hundredth,
    percent,
    short,
    size_in_figures,
    spread,
)
from subspace.study.reports.grid import Cell, Grid
from subspace.study.results.equal_cost import MEANING
from subspace.study.results.schema import TABLES
from subspace.study.results.summary import DENSE, rows_of_size, sizes
from subspace.study.spec.study import SIZES

LARGE = 1e308  # what is missing sorts as -LARGE, the dense network's size as LARGE; scripts take no infinity
Column = tuple[str, Callable[[pd.Series], Cell]]  # an explanation, and the cell of a row
SAYS = {name: column.description for name, column in TABLES["runs"].items()}
COSTS = {
    "file B": "file_bytes",
    "peak B": "peak_bytes",
    "activation B": "activation_bytes",
    "stored B": "stored_training",
    "total FLOP": "flops_total",
}
COSTS |= {"init FLOP": "flops_init", "step FLOP": "flops_training", "step dense": "flops_dense_training"}
COSTS |= {"forward FLOP": "flops_forward", "forward dense": "flops_dense_forward"}
REDUCED = {"reduced B": "reduced_bytes", "reduced dense": "reduced_bytes_dense"}
PARTS = ("alpha", "bias", "norm", "other")


def summary_grid(table: pd.DataFrame) -> Grid:
    """All of a `summary_table` that is not the same in every row by what the table is."""
    columns = setting_columns(table) | size_columns() | accuracy_columns()
    columns |= {
        "worst": _figure("min", hundredth, "of the seeds"),
        "best": _figure("max", hundredth, "of the seeds"),
        "change": (
            "in points, to the dense network of the same seed",
            lambda row: Cell(spread(row["change"], row["change_std"], "+"), order=_order(row["change"])),
        ),
    }
    if table["validation"].notna().any():
        columns["validation %"] = _figure("validation", hundredth, "mean accuracy on the samples held apart")
    columns |= bits_columns(table) | {name: _figure(name, exact) for name in ("weights", "theta", *PARTS)}
    return _grid("Means over seeds", table, columns | cost_columns(table))


def accuracy_grid(part: pd.DataFrame, where: str) -> Grid:
    """Accuracy and sizes of a part of `summary_table`: what trains by kind, and what it costs."""
    kinds = ["theta", *(kind for kind in PARTS if part[kind].gt(0).any())]
    columns = size_columns() | accuracy_columns() | {kind: _figure(kind, formats.counted) for kind in kinds}
    columns |= {head: _figure(COSTS[head], short) for head in ("file B", "peak B", "total FLOP")}
    return _grid(f"Test accuracy: {where}", part, columns | bits_columns(part))


def costs_grid(part: pd.DataFrame, where: str) -> Grid:
    """FLOPs and bytes of a part of `summary_table`."""
    return _grid(f"FLOPs and bytes: {where}", part, size_columns() | cost_columns(part))


def runs_grid(runs: pd.DataFrame) -> Grid:
    """The runs table, without what is the same in a study."""
    columns = setting_columns(runs) | size_columns()
    columns |= {
        "seed": _figure("seed", exact),
        "status": _text("status"),
        "accuracy %": _figure("test_accuracy", hundredth),
    }
    if runs["validation_accuracy"].notna().any():
        columns["validation %"] = _figure("validation_accuracy", hundredth)
    columns |= {"loss": _figure("train_loss", lambda value: formats.tenths(value, ".4f"))}
    columns |= {"realised %": _figure("realised_density", percent), "theta": _figure("theta", exact)}
    columns |= cost_columns(runs)
    columns |= {name: _figure(name, exact) for name in ("samples", "attempts", "warnings")}
    columns |= {
        "ended": _text("finished_at"),
        "processor": _text("cpu"),
        "torch": _text("torch"),
        "hash": _text("hash"),
    }
    return _grid("Runs", runs, columns)


def price_tanner_grid(part: pd.DataFrame, where: str) -> Grid:
    """The summary table of Price and Tanner's talk (2021) on "Dense for the price of sparse" (ICML 2021).

    Of one data set and network: the change at every size; compute and storage at the smallest.
    """
    every = sizes(part)
    columns: dict[str, Column] = {"method": _text("label")}
    for size in every:
        name = format_size(size)
        columns[name] = (f"change against dense in points at {size[0]} {name}", _change(part, size))
    costs = {"compute init": "flops_init", "compute training": "flops_training", "compute final": "flops_forward"}
    costs |= {"stored init": "stored_init", "stored training": "stored_training", "stored final": "stored_bytes"}
    columns |= {head: _figure(name, short) for head, name in costs.items()}
    dense = part[part["method"] == DENSE]
    rows = pd.concat([dense, rows_of_size(part, every[-1])]) if every else dense
    at = f"; compute (FLOPs) and bytes at {every[-1][0]} {format_size(every[-1])}" if every else ""
    return _grid(f"Change against dense in points: {where}{at}", rows, columns)


def _change(part: pd.DataFrame, size: tuple[str, float]) -> Callable[[pd.Series], Cell]:
    def cell(row: pd.Series) -> Cell:
        same = part[(part["label"] == row["label"]) & (part["options"] == row["options"])]
        found = (same if row["method"] == DENSE else rows_of_size(same, size))["change"]
        change = float(found.iloc[0]) if len(found) else float("nan")
        return Cell(spread(change, float("nan"), "+"), order=_order(change))

    return cell


def bars_grid(part: pd.DataFrame, where: str) -> Grid:
    """The accuracies of part of a `summary_table` as bars, a row per method, a column per size: for a terminal."""
    part, every = part[part["seeds"] > 0], sizes(part)
    rows = []
    for (name, label, _), lines in part.groupby(["method", "label", "options"], sort=False):
        found = [lines] if name == DENSE or not every else [rows_of_size(lines, size) for size in every]
        bars = [_bar(float(same["mean"].iloc[0])) if len(same) else Cell("") for same in found]
        rows.append([Cell(str(label)), *bars, *[Cell("")] * (max(len(every), 1) - len(bars))])
    heads = [(size_in_figures(size).replace(" ", "\u00a0"), "") for size in every] or [("dense", "")]
    return Grid(f"Test accuracy in %: {where}", [("method", ""), *heads], rows)


def _bar(mean: float) -> Cell:
    return Cell(f"{bar(mean)} {100 * mean:5.1f}")


def compared_grid(part: pd.DataFrame, where: str) -> Grid:
    """Part of a `comparisons` table: what each method is behind the best of a size, and Student's interval for that.

    A row per method, a column per size; "*" where the best is better by both intervals.
    """
    every = sizes(part)
    rows = []
    for (label, options), lines in part.groupby(["other_label", "other_options"], sort=False):
        cells = [Cell(str(label))]
        for size in every:
            same, best = rows_of_size(lines, size), rows_of_size(part, size)[["label", "options"]]
            is_best = bool((best == [label, options]).all(axis=1).any())  # and else it has no results there
            cells.append(_behind(same.iloc[0]) if len(same) else Cell("best" if is_best else "-"))
        rows.append(cells)
    heads = [(f"{size[0]} {size_in_figures(size)}", "") for size in every]
    seeds = int(part["pairs"].max())
    caption = f"Points behind the best of a size, over {seeds} pairs of equal seeds, with 95 % intervals: {where}"
    return Grid(f"{caption}; *: the best is better", [("method", ""), *heads], rows)


def _behind(row: pd.Series) -> Cell:
    shown = f"{100 * row['difference']:+.1f}" + "*" * bool(row["better"]) if row["pairs"] else "-"
    within = "" if pd.isna(row["low"]) else f"[{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
    return Cell(shown, within, _order(row["difference"]))


def equal_grid(part: pd.DataFrame, where: str) -> Grid:
    """Part of an `at_equal` table: a row per method, a column per budget with the size and what it really cost."""
    cost, chosen = str(part["cost"].iloc[0]), str(part["chosen_by"].iloc[0])
    budgets = list(part["budget"].unique())
    rows = []
    for (label, _), entries in part.groupby(["label", "options"], sort=False):
        cells = [Cell(str(label))]
        for budget in budgets:
            row = entries[entries["budget"] == budget].iloc[0]
            small = f"{asked_size(row)}: {short(row['spent'])}" if row["seeds"] else ""
            cells.append(Cell(spread(row["mean"], row["std"]), small, _order(row["mean"])))
        rows.append(cells)
    heads = [("method", ""), *((f"≤\u00a0{short(budget)}", f"{budget:,.0f}") for budget in budgets)]
    by = "by samples held apart" if chosen == "validation" else "by the test samples themselves"
    return Grid(f"Test accuracy % at equal {MEANING[cost]}: {where}; best entry {by}", heads, rows)


def setting_columns(table: pd.DataFrame) -> dict[str, Column]:
    """What tells data sets and networks apart, if there are several."""
    names = ("data", "data_options", "model", "model_options")
    return {name.replace("_", " "): _text(name) for name in names if table[name].nunique() > 1}


def size_columns() -> dict[str, Column]:
    """Which method it is, and what it was asked to train."""
    return {"method": _text("label"), "size": ("the density or dim that was asked for", _size)}


def accuracy_columns() -> dict[str, Column]:
    """What is trained, and the accuracy over the seeds."""
    return {
        "realised %": _figure("realised_density", percent),
        "accuracy %": (
            "test accuracy, mean ± standard deviation over the seeds",
            lambda row: Cell(spread(row["mean"], row["std"]), order=_order(row["mean"])),
        ),
        "seeds": ("finished, of how many where some failed", _seeds),
    }


def bits_columns(table: pd.DataFrame) -> dict[str, Column]:
    """The loss on the test samples in bits, where it is known."""
    if table["bits"].isna().all():
        return {}
    says = "cross-entropy of the test labels in bits, of text per character: mean ± standard deviation over the seeds"
    return {
        "test bits": (says, lambda row: Cell(formats.bits(row["bits"], row["bits_std"]), order=_order(row["bits"])))
    }


def cost_columns(table: pd.DataFrame) -> dict[str, Column]:
    """What a run costs."""
    names = COSTS | (REDUCED if table["reduced_bytes"].gt(0).any() else {})
    return {head: _figure(name, short) for head, name in names.items()} | {
        "seconds": _figure("seconds", formats.tenths)
    }


def _grid(caption: str, table: pd.DataFrame, columns: Mapping[str, Column]) -> Grid:
    heads = [(head, explained) for head, (explained, _) in columns.items()]
    return Grid(caption, heads, [[cell(row) for _, cell in columns.values()] for _, row in table.iterrows()])


def _size(row: pd.Series) -> Cell:
    asked = [float(row[name]) for name in SIZES if pd.notna(row[name])]
    return Cell(asked_size(row), order=asked[0] if asked else LARGE)


def _seeds(row: pd.Series) -> Cell:
    return Cell(formats.seeds(row), order=float(row["seeds"]))


def _text(name: str) -> Column:
    return SAYS.get(name, ""), lambda row: Cell("-" if pd.isna(row[name]) else str(row[name]))


def _figure(name: str, form: Callable[[Any], str], explained: str = "") -> Column:
    return explained or SAYS.get(name, ""), lambda row: Cell(form(row[name]), order=_order(row[name]))


def _order(value: float) -> float:
    return -LARGE if pd.isna(value) else float(value)
