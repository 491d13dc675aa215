"""Jacobian spectra of a study whose runs were asked for them: a long table, its summary, and figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from subspace.study.reports.figures import plots
from subspace.study.reports.figures.images import style
from subspace.study.reports.figures.looks import assign_looks
from subspace.study.reports.formats import size_in_figures
from subspace.study.results.schema import IDENTITY, TYPES
from subspace.study.results.store import Record
from subspace.study.results.summary import DENSE, SETTING, setting, sizes
from subspace.study.results.tables import identity, run_row
from subspace.study.spec.study import SIZES

WHEN = ("initial", "trained")
WHOLE = {"dim": "Float64", "bytes": "Float64"}  # to merge by
NOISE = 1e-6  # nothing below this is drawn
COLUMNS = [*IDENTITY, "method", "model_options", "data_options", "when", "sample", "rank", "value"]
SUMMARY = ["data", "data_options", "model", "model_options", "method", "label", *SIZES, "when"]


def spectra_table(records: Iterable[Record]) -> pd.DataFrame:
    """One row per run, time ("initial", "trained"), test sample and singular value; rank is from 1, the largest."""
    rows: list[dict[str, Any]] = []
    for record in records:
        known = next(run_row(record))
        shared = identity(record["configuration"]) | {
            name: known[name] for name in ("method", "model_options", "data_options")
        }
        for when, samples in ((record.get("metrics") or {}).get("spectra") or {}).items():
            for sample, values in enumerate(samples):
                rows += [
                    shared | {"when": when, "sample": sample, "rank": n, "value": v} for n, v in enumerate(values, 1)
                ]
    table = pd.DataFrame(rows, columns=COLUMNS)
    typed: pd.DataFrame = table.astype({name: TYPES[column.type] for name, column in IDENTITY.items()})
    return typed


def spectra_summary(table: pd.DataFrame) -> pd.DataFrame:
    """A row per method, size and time, over seeds and samples.

    largest, smallest: the median of a Jacobian's largest and smallest singular value; rms: that of (mean of
    squares)^1/2, 1 where signals keep their length; rank: of how many are more than `NOISE` of the largest, which is
    what float32 leaves of a 0; condition: of largest / smallest, inf without full rank.
    """
    one = [*SUMMARY, "seed", "sample"]
    values = table.groupby(one, dropna=False, sort=False)["value"]
    each = values.agg(
        largest="max",
        smallest="min",
        rms=lambda v: math.sqrt((v**2).mean()),
        rank=lambda v: (v > NOISE * v.max()).sum(),
        count="size",
    ).reset_index()
    ratio = each["largest"] / each["smallest"].where(each["smallest"] > 0)
    each["condition"] = ratio.where(each["rank"] == each["count"], math.inf)
    groups = each.groupby(SUMMARY, dropna=False, sort=False)
    found: pd.DataFrame = groups[["largest", "smallest", "rms", "rank", "condition"]].median().reset_index()
    return found


def spectra_figures(table: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """For every data set and network, a title and a figure: a row for each time, a column for each size."""
    for _, part in table.groupby(SUMMARY[:4], dropna=False, sort=False):
        title = f"Singular values of the Jacobian, logits by inputs: {setting(part.iloc[0])}"
        yield title, spectra_figure(part, title)


def spectra_figure(table: pd.DataFrame, title: str) -> Figure:
    """Of one data set and network: the median over samples and seeds, and from the first to the ninth decile."""
    every = sizes(table)
    looks = assign_looks(table["label"])
    with style():
        figure = Figure(figsize=(1.2 + 3.4 * max(len(every), 1), 6.4), layout="constrained")
        axes = figure.subplots(len(WHEN), max(len(every), 1), sharex=True, sharey=True, squeeze=False)
        for row, when in enumerate(WHEN):
            for column, size in enumerate(every or [None]):
                own = table[table["when"] == when]
                if size:
                    own = own[(own["method"] == DENSE) | (own[size[0]] == size[1]).fillna(False)]
                here = axes[row][column]
                for label, lines in own.groupby("label", sort=False):
                    deciles = lines.groupby("rank")["value"].quantile([0.1, 0.5, 0.9]).unstack().clip(lower=NOISE)
                    look = looks[str(label)] | {"markersize": 4}
                    here.plot(deciles.index, deciles[0.5], label=str(label), linewidth=1.6, **look)
                    here.fill_between(deciles.index, deciles[0.1], deciles[0.9], color=look["color"], alpha=0.12, lw=0)
                here.axhline(1, color=plots.GREY, linewidth=0.8, linestyle=":")
                here.set_yscale("log")
                here.yaxis.set_major_formatter(lambda y, _: f"{y:g}" if y > 1.1 * NOISE else f"below {NOISE:g}")
                plots.plain(here)
                where = f", {size[0]} {size_in_figures(size)}" if size else ""
                here.set_title(f"{when}{where}", loc="left", fontsize=10)
                if column == 0:
                    here.set_ylabel("singular value (log scale)")
                if row == len(WHEN) - 1:
                    here.set_xlabel("rank")
        handles, names = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    return figure


def rank_figure(spectra: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """Test accuracy after training against the rank and the condition number of the Jacobian at the start.

    A row of panels for each data set and network, a point for each method and size, with a stroke from the worst seed
    to the best. Those without full rank have no condition number.

    Args:
        spectra: a `spectra_summary`.
        table: the `summary_table` of the same runs.
    """
    start = spectra[spectra["when"] == WHEN[0]].astype(WHOLE)
    known = table.astype(WHOLE).merge(start[[*SUMMARY, "rank", "condition"]], on=SUMMARY[:-1])
    known = plots.finished(known)
    parts = list(known.groupby(SETTING, dropna=False, sort=False))
    looks = assign_looks(known["label"])
    measures = {
        "rank": "rank at the start (median)",
        "condition": "condition number at the start, of full rank (log scale)",
    }
    with style():
        figure = Figure(figsize=(9.2, 1.6 + 3.1 * len(parts)), layout="constrained")
        axes = figure.subplots(max(len(parts), 1), 2, sharey=True, squeeze=False)
        for (_, part), row in zip(parts, axes, strict=True):
            for here, (measure, words) in zip(row, measures.items(), strict=True):
                plots.frame(here, part)
                here.set_title(setting(part.iloc[0]), loc="left", fontsize=10)
                here.set_xlabel(words)
                for place, (label, points) in enumerate(part.groupby("label", sort=False)):
                    points = points[points[measure] < math.inf]
                    if not len(points):
                        continue
                    along = points[measure] + (
                        0.06 * (place - 3) if measure == "rank" else 0
                    )  # apart, where ranks are equal
                    here.vlines(along, points["min"], points["max"], color=looks[str(label)]["color"], alpha=0.5)
                    here.plot(along, points["mean"], label=str(label), **looks[str(label)] | {"linestyle": "", "ms": 7})
            row[1].set_xscale("log")
            row[1].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            row[1].xaxis.set_major_formatter(lambda x, _: f"{x:g}")
            row[1].xaxis.set_minor_formatter(NullFormatter())
            row[1].set_ylabel("")
        handles, names = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
        title = "Test accuracy after training against the Jacobian at the start: a point for every method and size"
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    return figure
