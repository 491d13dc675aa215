"""Results as tables: one row per run, and one per method and density over its seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd
from rich import box
from rich.table import Table

from subspace.study.methods import METHODS
from subspace.study.store import Record

SIZES = ["weights", "theta", "alpha", "bias", "norm", "other", "trained_bytes", "stored_bytes"]
COSTS = ["flops_init", "flops_training", "flops_final", "flops_total", "flops_dense"]
COSTS += ["stored_init", "stored_training"]
FIGURES = ["test_accuracy", "train_loss", *SIZES, *COSTS, "samples", "seconds"]


def runs_table(records: Iterable[Record]) -> pd.DataFrame:
    """One row per run: its configuration, how it ended, and `FIGURES`; a failed run has its error and no figures.

    test_accuracy is a fraction of the test images after the last epoch. theta and the columns after it count numbers
    that train: the entries of theta without alpha, alpha, and what trains beside theta, by kind. FLOPs and bytes are
    those of `train.Metrics`. options are the method's own, as "name=value name=value".
    """
    table: pd.DataFrame = pd.DataFrame([row(record) for record in records])
    return table.astype(dict.fromkeys(COSTS, float)) if len(table) else table  # None, of earlier versions, to NaN


def row(record: Record) -> dict[str, Any]:
    """A record, flat."""
    configuration = dict(record["configuration"])
    training = configuration.pop("training")
    options = " ".join(f"{name}={value:g}" for name, value in configuration.pop("options", {}).items())
    flat = {**configuration, **training, "options": options, "status": record["status"], "error": record["error"]}
    figures = dict(record["metrics"] or {})
    if figures:
        figures |= {name: figures[name][-1] for name in ("test_accuracy", "train_loss")}
        figures |= {kind: figures["beside"].get(kind, 0) for kind in ("bias", "norm", "other")}
        figures["theta"] = figures["dim"] - figures["alpha"]
    return flat | {name: figures.get(name) for name in FIGURES}


def summary_table(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per method and density: test accuracy over the finished seeds, and what a run trains and stores.

    std is the sample standard deviation (n - 1; NaN for one seed). change and change_std: of the difference to the
    dense network of the same seed; NaN where there is none. Methods are in the order of `METHODS`, densities fall.
    """
    finished = runs[runs["status"] == "finished"]
    dense = finished[finished["method"] == "ordinary"].set_index("seed")["test_accuracy"]
    finished = finished.assign(change=finished["test_accuracy"] - finished["seed"].map(dense))
    groups = finished.groupby(["method", "density"], dropna=False)
    figures = groups["test_accuracy"].agg(["mean", "std", "min", "max", "count"]).rename(columns={"count": "seeds"})
    figures = figures.join(groups["change"].agg(change="mean", change_std="std"))
    table: pd.DataFrame = figures.join(groups[SIZES].max()).join(groups[COSTS].mean()).reset_index()
    place = {name: number for number, name in enumerate(METHODS)}
    table = table.sort_values("density", ascending=False).sort_values(
        "method", key=lambda names: names.map(place), kind="stable", ignore_index=True
    )
    return table


def spread(mean: float, std: float, sign: str = "") -> str:
    """A mean of fractions in per cent, and its spread where there is one."""
    return f"{100 * mean:{sign}.1f}" + ("" if pd.isna(std) else f" ± {100 * std:.1f}")


def printed(table: pd.DataFrame) -> Table:
    """`summary_table` for people, 80 characters wide: accuracy in per cent, what trains in numbers, bytes in kB."""
    shown = Table(title="Test accuracy, mean ± standard deviation over seeds", title_justify="left", pad_edge=False)
    shown.box, shown.title_style = box.SIMPLE_HEAD, "bold"
    shown.add_column("method", no_wrap=True)
    for name in ("density", "accuracy %", "seeds", "theta"):
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("beside", justify="right", min_width=8)  # "5 alpha, 10 bias" may take two lines
    shown.add_column("stored kB", justify="right", no_wrap=True)
    previous = None
    for line in table.to_dict("records"):
        label = METHODS[line["method"]].label
        beside = [f"{int(line[kind]):,} {kind}" for kind in ("alpha", "bias", "norm", "other") if line[kind]]
        shown.add_row(
            label if label != previous else "",
            "dense" if pd.isna(line["density"]) else f"{line['density']:.4g}",
            spread(line["mean"], line["std"]),
            str(line["seeds"]),
            f"{int(line['theta']):,}",
            ", ".join(beside) or "-",
            f"{line['stored_bytes'] / 1000:,.1f}",
        )
        previous = label
    return shown


def printed_costs(table: pd.DataFrame) -> Table:
    """The columns of the talk "Dense for the Price of Sparse" (2021), in 100 characters, as `accounting` counts them.

    Accuracy against the dense network in points; FLOPs: to choose U in 10^6 in all, to train (the mean of all steps),
    to use and to train with every W built in 10^3 per sample, in all in 10^9; bytes in kB: first, most, last.
    """
    shown = Table(
        title="Accuracy against dense, FLOPs and stored bytes", title_justify="left", padding=0, show_edge=False
    )
    shown.box, shown.title_style = box.SIMPLE_HEAD, "bold"
    shown.caption = "init: to choose U; train: mean of all steps, per sample; dense: the same, with every W built"
    shown.caption_justify = "left"
    shown.add_column("method", no_wrap=True)
    heads = ["density", "points", "init\nMFLOP", "train\nkFLOP", "final\nkFLOP", "total\nGFLOP", "dense\nkFLOP"]
    for head in [*heads, "init\nkB", "train\nkB", "final\nkB"]:
        shown.add_column(head, justify="right", no_wrap=True, min_width=6)
    scales = zip(COSTS, (1e6, 1e3, 1e3, 1e9, 1e3, 1e3, 1e3), strict=True)
    units = [*scales, ("stored_bytes", 1e3)]
    previous = None
    for line in table.to_dict("records"):
        label = METHODS[line["method"]].label
        shown.add_row(
            label if label != previous else "",
            "dense" if pd.isna(line["density"]) else f"{line['density']:.4g}",
            "-" if pd.isna(line["change"]) else spread(line["change"], line["change_std"], "+"),
            *(short(line[name] / unit) for name, unit in units),
        )
        previous = label
    return shown


def short(value: float) -> str:
    """A figure in three digits or whole, "-" for one that a run of an earlier version does not have.

    >>> short(0), short(1.2345), short(12.345), short(1234.5), short(float("nan"))
    ('0', '1.23', '12.3', '1,234', '-')
    """
    if pd.isna(value):
        return "-"
    digits = 0 if value == 0 else min(2, max(0, 2 - math.floor(math.log10(abs(value)))))
    return f"{value:,.{digits}f}"
