"""When is training possible? Whether runs come to a given training accuracy, over density and depth.

A report on the results of an ordinary study whose models are of several depths. The depth of a network is the number of
tensors that are re-parametrized; networks that differ in `DEPTHS` alone are of one kind.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import subspace
from subspace import Key
from subspace.study import data, models
from subspace.study.entries.entry import canonical
from subspace.study.reports.figures.images import style
from subspace.study.reports.figures.looks import BLUE
from subspace.study.reports.figures.plots import GREY
from subspace.study.reports.formats import format_size
from subspace.study.results.store import Record
from subspace.study.results.summary import DENSE, with_options
from subspace.study.results.tables import run_row
from subspace.study.spec.study import SIZES, Run

DEPTHS = ("blocks", "depth", "layers")
CELL = ["data", "data_options", "kind", "method", "label", *SIZES, "depth"]


def trainability_table(records: Iterable[Record], accuracy: float) -> pd.DataFrame:
    """A row per data set, kind of network, method, size and depth, over the seeds.

    runs; reached: how many had a training accuracy of at least `accuracy` after some epoch, and share of them; epoch:
    the first such, their median (NaN for none); best: the mean over seeds of a run's highest training accuracy. A run
    that failed did not get there. ValueError for an accuracy outside (0, 1].
    """
    if not 0 < accuracy <= 1:
        raise ValueError(f"accuracy must be in (0, 1], got {accuracy}")
    records = list(records)
    depths = {_network(record): _depth(record) for record in records if record["status"] == "finished"}
    unknown = {_network(record): record for record in records if _network(record) not in depths}
    depths |= {network: _built(record) for network, record in unknown.items()}  # where no run came to its end
    table = pd.DataFrame(
        [_row(record, depths, accuracy) for record in records], columns=[*CELL, "reached", "epoch", "best"]
    )
    groups = table.groupby(CELL, dropna=False, sort=False)
    found: pd.DataFrame = groups.agg(
        runs=("reached", "size"),
        reached=("reached", "sum"),
        share=("reached", "mean"),
        epoch=("epoch", "median"),
        best=("best", "mean"),
    ).reset_index()
    return found


def _network(record: Record) -> str:
    return canonical(record["configuration"]["model"])


def _depth(record: Record) -> int:
    return sum(len(tensor["shape"]) > 1 for tensor in record["metrics"]["tensors"])  # biases may be among them


def _built(record: Record) -> int:
    run = Run.parse(record["configuration"])
    return len(subspace.targets(models.build(run.model, data.load(run.data), Key(0))))


def _row(record: Record, depths: dict[str, int], accuracy: float) -> dict[str, Any]:
    row = next(run_row(record))
    found = [epoch.get("train_accuracy") or 0.0 for epoch in (record.get("metrics") or {}).get("epochs", [])]
    first = next((number for number, value in enumerate(found, 1) if value >= accuracy), None)
    others = {name: value for name, value in json.loads(row["model_options"]).items() if name not in DEPTHS}
    if len(set(others.get("hidden", []))) == 1:  # a width; how many there are is a depth
        others["hidden"] = others["hidden"][0]
    kind = ", ".join([row["model"], *(f"{name}={value}" for name, value in others.items())])
    return {name: row.get(name) for name in CELL} | {
        "kind": kind,
        "depth": depths[_network(record)],
        **{size: row[size] if row[size] is not None else math.nan for size in SIZES},
        "reached": first is not None,
        "epoch": first if first is not None else math.nan,
        "best": max(found, default=0.0),
    }


def heat_maps(table: pd.DataFrame, accuracy: float) -> Iterator[tuple[str, Figure]]:
    """For every data set and kind of network, a title and a figure with a heat map per method."""
    for (name, options, kind), part in table.groupby(["data", "data_options", "kind"], sort=False):
        where = with_options(str(name), str(options))
        title = f"When training comes to {100 * accuracy:g} % of the training samples: {where}; {kind}"
        yield title, heat_map(part, title)


def heat_map(table: pd.DataFrame, title: str) -> Figure:
    """The share of seeds that got there over size and depth, with the first epoch of it; of one kind of network.

    A method without a size, as dense training, has one column.
    """
    labels = list(dict.fromkeys(table.sort_values("method", key=lambda m: m != DENSE, kind="stable")["label"]))
    depths = sorted(table["depth"].unique())
    columns = min(4, len(labels))
    height = math.ceil(len(labels) / columns)
    shades = LinearSegmentedColormap.from_list("share", ["#F2F2F2", BLUE])
    with style():
        figure = Figure(figsize=(3.6 * columns + 0.6, (0.34 * len(depths) + 1.3) * height + 0.7), layout="constrained")
        axes = figure.subplots(height, columns, squeeze=False).flat
        for label, here in zip(labels, axes, strict=False):  # labels first: at their end no panel is taken
            own = table[table["label"] == label]
            size = next((each for each in SIZES if own[each].notna().any()), "dim")
            every = sorted(own[size].dropna().unique(), reverse=True) or [math.nan]
            for place, value in enumerate(every):
                for level, depth in enumerate(depths):
                    cell = own[(own["depth"] == depth) & ((own[size] == value) | own[size].isna())]
                    if len(cell):
                        share, epoch = float(cell["share"].iloc[0]), cell["epoch"].iloc[0]
                        at = (place - 0.48, level - 0.46)
                        here.add_patch(Rectangle(at, 0.96, 0.92, facecolor=shades(share), linewidth=0))
                        look = {"ha": "center", "va": "center", "color": "white" if share > 0.6 else GREY}
                        here.text(place, level, f"{epoch:g}" if share else "-", fontsize=8, **look)
            here.set_xlim(-0.5, len(every) - 0.5)
            here.set_ylim(-0.5, len(depths) - 0.5)
            named = ["dense"] if math.isnan(every[0]) else [format_size((size, value)) for value in every]
            here.set_xticks(range(len(every)), named, fontsize=8)
            here.set_yticks(range(len(depths)), [f"{depth:g}" for depth in depths], fontsize=8)
            here.set_title(label, loc="left", fontsize=10)
            here.spines[:].set_visible(False)
            here.tick_params(length=0)
            here.set_xlabel("" if math.isnan(every[0]) else size, fontsize=9)
            here.set_ylabel("depth, weight tensors", fontsize=9)
        for here in list(axes):
            here.set_axis_off()
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        note = "colour: share of the seeds that got there; number: the first epoch at which they did"
        figure.supxlabel(note, fontsize=8.5, color=GREY, x=0.01, ha="left")
    return figure
