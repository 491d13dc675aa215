"""Results as tables: one row per run, and one per method and density over its seeds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd
from rich import box
from rich.table import Table

from subspace.study.methods import METHODS
from subspace.study.store import Record

SIZES = ["weights", "theta", "alpha", "bias", "norm", "other", "trained_bytes", "stored_bytes"]
FIGURES = ["test_accuracy", "train_loss", *SIZES, "seconds"]


def runs_table(records: Iterable[Record]) -> pd.DataFrame:
    """One row per run: its configuration, how it ended, and `FIGURES`; a failed run has its error and no figures.

    test_accuracy is a fraction of the test images after the last epoch. theta and the columns after it count numbers
    that train: the entries of theta without alpha, alpha, and what trains beside theta, by kind.
    """
    table: pd.DataFrame = pd.DataFrame([row(record) for record in records])
    return table


def row(record: Record) -> dict[str, Any]:
    """A record, flat."""
    configuration = dict(record["configuration"])
    training = configuration.pop("training")
    flat = {**configuration, **training, "status": record["status"], "error": record["error"]}
    figures = dict(record["metrics"] or {})
    if figures:
        figures |= {name: figures[name][-1] for name in ("test_accuracy", "train_loss")}
        figures |= {kind: figures["beside"].get(kind, 0) for kind in ("bias", "norm", "other")}
        figures["theta"] = figures["dim"] - figures["alpha"]
    return flat | {name: figures.get(name) for name in FIGURES}


def summary_table(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per method and density: test accuracy over the finished seeds, and what a run trains and stores.

    std is the sample standard deviation (n - 1; NaN for one seed). Methods are in the order of `METHODS`, densities
    fall.
    """
    groups = runs[runs["status"] == "finished"].groupby(["method", "density"], dropna=False)
    figures = groups["test_accuracy"].agg(["mean", "std", "min", "max", "count"]).rename(columns={"count": "seeds"})
    table: pd.DataFrame = figures.join(groups[SIZES].max()).reset_index()
    place = {name: number for number, name in enumerate(METHODS)}
    table = table.sort_values("density", ascending=False).sort_values(
        "method", key=lambda names: names.map(place), kind="stable", ignore_index=True
    )
    return table


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
            f"{100 * line['mean']:.1f}" + ("" if pd.isna(line["std"]) else f" ± {100 * line['std']:.1f}"),
            str(line["seeds"]),
            f"{int(line['theta']):,}",
            ", ".join(beside) or "-",
            f"{line['stored_bytes'] / 1000:,.1f}",
        )
        previous = label
    return shown
