"""The phase diagram of success over size and target (Larsen et al., "How many degrees of freedom do we need to train
deep networks: a loss landscape perspective", ICLR 2022): the share of seeds that reach a target at a dim.

Made of the results of an ordinary study with ordinary training in it. A target is a share of the test accuracy that
ordinary training from the same seed has after its last epoch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from textwrap import fill

import pandas as pd
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from subspace.study.reports.figures.images import style
from subspace.study.reports.figures.looks import BLUE
from subspace.study.reports.figures.plots import GREY
from subspace.study.reports.formats import format_size
from subspace.study.results.summary import DENSE, SETTING, setting
from subspace.study.spec.study import SIZES

TARGETS = tuple(thousandth / 1000 for thousandth in range(500, 1025, 25))
CELL = [*SETTING, "method", "options", "label", *SIZES]


def phase_table(runs: pd.DataFrame, targets: Sequence[float] = TARGETS) -> pd.DataFrame:
    """A row per data set, network, method, size and target: `runs`, how many seeds, and `share`, that of those there.

    runs: a `tables.runs_table`. A run that failed did not reach it. ValueError without ordinary training of a seed.
    """
    dense = runs[runs["method"] == DENSE].set_index([*SETTING, "seed"])["test_accuracy"]
    sized = runs[runs["method"] != DENSE]
    lines = pd.MultiIndex.from_frame(sized[[*SETTING, "seed"]])
    baseline = dense.reindex(lines).to_numpy()
    if pd.isna(baseline).any():
        missing = sized[pd.isna(baseline)].iloc[0]
        raise ValueError(f"runs must have ordinary training of every seed, got none of seed {missing['seed']}")
    share = sized["test_accuracy"].fillna(0) / baseline
    parts = [sized[CELL].assign(target=target, reached=share >= target) for target in targets]
    groups = pd.concat(parts).groupby([*CELL, "target"], dropna=False, sort=False)["reached"]
    table: pd.DataFrame = groups.agg(runs="size", share="mean").reset_index()
    return table


def phase_diagrams(table: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """For every data set and network, a title and a figure with a diagram per method."""
    for _, part in table.groupby(SETTING, sort=False):
        title = f"The share of seeds that reach a target: {setting(part.iloc[0])}"
        yield title, phase_diagram(part, title)


def phase_diagram(table: pd.DataFrame, title: str) -> Figure:
    """The share over size and target, of one data set and network: a panel for each method."""
    labels = list(dict.fromkeys(table["label"]))
    targets = sorted(table["target"].unique())
    columns = min(3, len(labels))
    height = math.ceil(len(labels) / columns)
    shades = LinearSegmentedColormap.from_list("share", ["#F2F2F2", BLUE])
    with style():
        figure = Figure(figsize=(3.9 * columns + 0.6, 3.0 * height + 0.9), layout="constrained")
        axes = figure.subplots(height, columns, squeeze=False).flat
        for label, here in zip(labels, axes, strict=False):  # labels first: at their end no panel is taken
            own = table[table["label"] == label]
            size = next(name for name in SIZES if own[name].notna().any())
            shares = own.pivot_table("share", "target", size, aggfunc="mean").reindex(targets)
            here.imshow(shares.to_numpy(), origin="lower", aspect="auto", cmap=shades, vmin=0, vmax=1)
            named = [format_size((size, value)) for value in shares.columns]
            here.set_xticks(range(len(named)), named, fontsize=8)
            here.set_yticks(range(0, len(targets), 2), [f"{100 * each:g} %" for each in targets[::2]], fontsize=7)
            here.set_title(fill(str(label), 44), loc="left", fontsize=8)
            here.set_xlabel(size, fontsize=9)
            here.set_ylabel("of ordinary training's accuracy", fontsize=8)
        for here in list(axes):
            here.set_axis_off()
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        figure.supxlabel("grey: none of the seeds; blue: all of them", fontsize=8.5, color=GREY, x=0.01, ha="left")
    return figure
