"""The tables of the HTML report: what each cell says, and what it sorts by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import pandas as pd

from subspace.study.reports.terminal import percent, seeds, short, size, spread, worded
from subspace.study.results.equal_cost import MEANING
from subspace.study.results.schema import TABLES
from subspace.study.results.summary import DENSE, at, sizes

LARGE = 1e308  # what is missing sorts as -LARGE, the dense network's size as LARGE; scripts take no infinity


class Cell(NamedTuple):
    """What a cell says, what is below that in small, and the figure it sorts by (None: by what it says)."""

    text: str
    small: str = ""
    order: float | None = None


class Grid(NamedTuple):
    """A table of the page: its caption, its heads with an explanation each, its rows; loose: to sort and to filter."""

    caption: str
    heads: list[tuple[str, str]]
    rows: list[list[Cell]]
    loose: bool = True


Column = tuple[str, Callable[[pd.Series], Cell]]  # an explanation, and the cell of a row
SAYS = {name: column.description for name, column in TABLES["runs"].items()}


def summary_grid(table: pd.DataFrame) -> Grid:
    """All of a `summary_table` that is not the same in every row by what the table is."""
    columns = place_columns(table) | {
        "method": _text("label"),
        "size": ("the density or dim that was asked for", sized),
        "realised %": _figure("realised_density", percent),
        "accuracy %": (
            "test accuracy, mean ± standard deviation over the seeds",
            lambda row: Cell(spread(row["mean"], row["std"]), order=_order(row["mean"])),
        ),
        "worst": _figure("min", hundredth, "of the seeds"),
        "best": _figure("max", hundredth, "of the seeds"),
        "seeds": ("finished, of how many where some failed", lambda row: Cell(seeds(row), order=float(row["seeds"]))),
        "change": (
            "in points, to the dense network of the same seed",
            lambda row: Cell(spread(row["change"], row["change_std"], "+"), order=_order(row["change"])),
        ),
    }
    if table["validation"].notna().any():
        columns["validation %"] = _figure("validation", hundredth, "mean accuracy on the samples held apart")
    columns |= {name: _figure(name, exact) for name in ("weights", "theta", "alpha", "bias", "norm", "other")}
    return grid("Means over seeds", table, columns | cost_columns(table))


def runs_grid(runs: pd.DataFrame) -> Grid:
    """The runs table, without what is the same in a study."""
    columns = place_columns(runs) | {
        "method": _text("label"),
        "size": ("the density or dim that was asked for", sized),
        "seed": _figure("seed", exact),
        "status": _text("status"),
        "accuracy %": _figure("test_accuracy", hundredth),
    }
    if runs["validation_accuracy"].notna().any():
        columns["validation %"] = _figure("validation_accuracy", hundredth)
    columns |= {"loss": _figure("train_loss", lambda value: "-" if pd.isna(value) else f"{value:.4f}")}
    columns |= {"realised %": _figure("realised_density", percent), "theta": _figure("theta", exact)}
    columns |= cost_columns(runs) | {
        "samples": _figure("samples", exact),
        "attempts": _figure("attempts", exact),
        "warnings": _figure("warnings", exact),
        "ended": _text("finished_at"),
        "processor": _text("cpu"),
        "torch": _text("torch"),
        "hash": _text("hash"),
    }
    return grid("Runs", runs, columns)


def cost_columns(table: pd.DataFrame) -> dict[str, Column]:
    """What a run costs."""
    names = {"file B": "file_bytes", "peak B": "peak_bytes", "stored B": "stored_training", "total FLOP": "flops_total"}
    names |= {"init FLOP": "flops_init", "step FLOP": "flops_training", "step dense": "flops_dense_training"}
    names |= {"forward FLOP": "flops_forward", "forward dense": "flops_dense_forward"}
    if table["reduced_bytes"].gt(0).any():
        names |= {"reduced B": "reduced_bytes", "reduced dense": "reduced_bytes_dense"}
    return {head: _figure(name, short) for head, name in names.items()} | {"seconds": _figure("seconds", seconds)}


def place_columns(table: pd.DataFrame) -> dict[str, Column]:
    """What tells data sets and networks apart, if there are several."""
    names = ("data", "data_options", "model", "model_options")
    return {name.replace("_", " "): _text(name) for name in names if table[name].nunique() > 1}


def talk_grid(part: pd.DataFrame, place: str) -> Grid:
    """The summary table of the talk, of one data set and network: the change at every size; costs at the smallest."""
    every = sizes(part)
    columns: dict[str, Column] = {"method": _text("label")}
    for one in every:
        columns[worded(one)] = (f"change against dense in points at {one[0]} {worded(one)}", _change(part, one))
    costs = {"compute init": "flops_init", "compute training": "flops_training", "compute final": "flops_forward"}
    costs |= {"stored init": "stored_init", "stored training": "stored_training", "stored final": "stored_bytes"}
    columns |= {head: _figure(name, short) for head, name in costs.items()}
    dense = part[part["method"] == DENSE]
    rows = pd.concat([dense, at(part, every[-1])]) if every else dense
    where = f"; compute (FLOPs) and bytes at {every[-1][0]} {worded(every[-1])}" if every else ""
    return grid(f"Change against dense in points: {place}{where}", rows, columns)


def _change(part: pd.DataFrame, one: tuple[str, float]) -> Callable[[pd.Series], Cell]:
    def cell(row: pd.Series) -> Cell:
        same = part[(part["label"] == row["label"]) & (part["options"] == row["options"])]
        found = (same if row["method"] == DENSE else at(same, one))["change"]
        change = float(found.iloc[0]) if len(found) else float("nan")
        return Cell(spread(change, float("nan"), "+"), order=_order(change))

    return cell


def equal_grid(part: pd.DataFrame, place: str) -> Grid:
    """Part of an `at_equal` table: a row per method, a column per budget with the size and what it really cost."""
    cost, chosen = str(part["cost"].iloc[0]), str(part["chosen_by"].iloc[0])
    budgets = list(part["budget"].unique())
    rows = []
    for (label, _), entries in part.groupby(["label", "options"], sort=False):
        cells = [Cell(str(label))]
        for budget in budgets:
            line = entries[entries["budget"] == budget].iloc[0]
            small = f"{size(line)}: {short(line['spent'])}" if line["seeds"] else ""
            cells.append(Cell(spread(line["mean"], line["std"]), small, _order(line["mean"])))
        rows.append(cells)
    heads = [("method", ""), *((f"≤ {short(budget)}", f"{budget:,.0f}") for budget in budgets)]
    by = "by samples held apart" if chosen == "validation" else "by the test samples themselves"
    return Grid(f"Test accuracy % at equal {MEANING[cost]}: {place}; best entry {by}", heads, rows)


def grid(caption: str, table: pd.DataFrame, columns: Mapping[str, Column]) -> Grid:
    """A table of the columns by their heads."""
    heads = [(head, explained) for head, (explained, _) in columns.items()]
    return Grid(caption, heads, [[cell(row) for _, cell in columns.values()] for _, row in table.iterrows()])


def plain(caption: str, heads: Iterable[str], rows: Iterable[Iterable[object]]) -> Grid:
    """A table of texts as they are, in their order."""
    return Grid(caption, [(head, "") for head in heads], [[Cell(str(cell)) for cell in row] for row in rows], False)


def sized(row: pd.Series) -> Cell:
    """What was asked to train."""
    asked = [float(row[name]) for name in ("density", "dim") if pd.notna(row[name])]
    return Cell(size(row), order=asked[0] if asked else LARGE)


def _text(name: str) -> Column:
    return SAYS.get(name, ""), lambda row: Cell("-" if pd.isna(row[name]) else str(row[name]))


def _figure(name: str, form: Callable[[float], str], explained: str = "") -> Column:
    return explained or SAYS.get(name, ""), lambda row: Cell(form(row[name]), order=_order(row[name]))


def _order(value: float) -> float:
    return -LARGE if pd.isna(value) else float(value)


def hundredth(value: float) -> str:
    """A fraction in per cent with two digits after the point, "-" for none."""
    return "-" if pd.isna(value) else f"{100 * value:.2f}"


def exact(value: float) -> str:
    """A whole number, "-" for none."""
    return "-" if pd.isna(value) else f"{int(value):,}"


def seconds(value: float) -> str:
    """A time, "-" for none."""
    return "-" if pd.isna(value) else f"{value:,.1f}"
