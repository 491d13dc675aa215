"""The table and the picture of docs/findings.md on language models in so many bytes: networks at equal bytes."""

from __future__ import annotations

import json
import math

import pandas as pd
from matplotlib.figure import Figure

from benchmarks.plots import against_bytes
from subspace.study.reports.figures.images import style
from subspace.study.reports.figures.looks import assign_looks
from subspace.study.reports.formats import bits
from subspace.study.reports.grid import Grid

CASE = ["at_most", "label", "width", "theta_bits", "learning_rate"]


def cases(runs: pd.DataFrame) -> pd.DataFrame:
    """A row per budget, method, network, bits of theta and rate: bits per character, and what the file holds.

    A dense network, which has no budget, is put with the least of the others' that its file fits into.
    """
    budgets = sorted(runs["bytes"].dropna().astype(int).unique())
    runs = runs[runs["status"] == "finished"].assign(
        at_most=[
            next(b for b in budgets if size <= b) if pd.isna(asked) else int(asked)
            for asked, size in zip(runs["bytes"], runs["file_bytes"].fillna(0), strict=True)
        ],
        width=[json.loads(options)["width"] for options in runs["model_options"]],
        loss=runs["test_loss"].astype(float) / math.log(2),
    )
    groups = runs.groupby(CASE, sort=False)
    found = groups.agg(
        mean=("loss", "mean"),
        std=("loss", "std"),
        low=("loss", "min"),
        high=("loss", "max"),
        seeds=("loss", "size"),
        file_bytes=("file_bytes", "mean"),
        theta=("theta", "mean"),
        weights=("weights", "max"),
    )
    table: pd.DataFrame = found.reset_index().sort_values(["at_most", "mean"], kind="stable")
    return table


def table(runs: pd.DataFrame) -> str:
    """The cases in Markdown, the best of each budget first."""
    heads = [
        *("file at most", "method", "weights", "trained", "bits each", "rate", "file", "bits per character", "seeds"),
    ]
    rows = [
        [
            *(f"{row.at_most:,}", row.label, f"{row.weights:,}", f"{row.theta:,.0f}", f"{row.theta_bits}"),
            *(f"{row.learning_rate:g}", f"{row.file_bytes:,.0f}", bits(row.mean, row.std), f"{row.seeds}"),
        ]
        for row in cases(runs).itertuples()
    ]
    return Grid.of_texts("", heads, rows).to_markdown()


def figure(runs: pd.DataFrame) -> Figure:
    """Bits per character against the bytes of the file, the best rate of each case, from the best seed to the worst."""
    found = cases(runs).drop_duplicates(["at_most", "label", "width", "theta_bits"])
    looks = assign_looks(found["label"])
    with style():
        drawn = Figure(figsize=(8, 4.6), layout="constrained")
        axes = drawn.subplots()
        for label, own in found.groupby("label", sort=False):
            own, look = own.sort_values("file_bytes"), looks[str(label)] | {"markersize": 6, "linestyle": ""}
            axes.vlines(own["file_bytes"], own["low"], own["high"], color=look["color"], alpha=0.5)
            axes.plot(own["file_bytes"], own["mean"], label=str(label), **look)
        against_bytes(drawn, axes, "Language models in so many bytes", "", "bits per character of the test text")
    return drawn
