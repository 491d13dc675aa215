"""Tables for people, 100 characters wide: what `summary` and `equal` have, for one data set and network each.

Accuracy is in per cent of the test samples, its change against the dense network of the same seed in points, each with
the standard deviation over seeds. Counts have a unit of 1000: 2.26M FLOPs are 2,260,000.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import pandas as pd
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from subspace.study.results.equal_cost import MEANING
from subspace.study.results.summary import DENSE, at, sizes

LABEL = 24  # characters of a label in a line
ACROSS = 6  # sizes or budgets beside each other


def framed(title: str, caption: str) -> tuple[Table, Group]:
    """An empty table whose first column, the method, folds where there is no room; and the same between two texts."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    shown.add_column("method", overflow="fold", max_width=LABEL)
    return shown, Group(Text(title, style="bold"), shown, Text(caption, style="dim"), Text())


def accuracy(part: pd.DataFrame, name: str) -> Group:
    """Accuracy and sizes of a part of `summary_table`: what trains by kind, and what it costs in all."""
    caption = "realised: counted; alpha, bias, norm, other: trained beside theta; file, peak: bytes; FLOP: all in all"
    shown, group = framed(f"Test accuracy, {name}", caption)
    kinds = ["theta", *(kind for kind in ("alpha", "bias", "norm", "other") if part[kind].gt(0).any())]
    for head in ("size", "realised", "accuracy %", "seeds", *kinds, "file", "peak", "FLOP"):
        shown.add_column(head, justify="right", no_wrap=True)
    for label, line in labelled(part):
        shown.add_row(
            label,
            size(line),
            percent(line["realised_density"]),
            spread(line["mean"], line["std"]),
            seeds(line),
            *(counted(line[kind]) for kind in kinds),
            *(short(line[cost]) for cost in ("file_bytes", "peak_bytes", "flops_total")),
        )
    return group


def costs(part: pd.DataFrame, name: str) -> Group:
    """FLOPs and bytes of a part of `summary_table`, and what an all-reduce sends where several processes trained."""
    caption = "init: to choose U; train: a sample of a step; final: a sample; dense: train and final with every W built"
    shown, group = framed(f"FLOPs, and bytes stored, {name}", caption)
    columns = {"size": "", "init\nFLOP": "flops_init", "train\nFLOP": "flops_training", "dense": "flops_dense_training"}
    columns |= {"final\nFLOP": "flops_forward", "dense ": "flops_dense_forward", "total\nFLOP": "flops_total"}
    columns |= {"init\nB": "stored_init", "train\nB": "stored_training", "final\nB": "stored_bytes"}
    columns |= {"file\nB": "file_bytes"}
    if part["reduced_bytes"].gt(0).any():
        columns |= {"reduced\nB": "reduced_bytes", "dense  ": "reduced_bytes_dense"}
    for head in columns:
        shown.add_column(head.strip(), justify="right", no_wrap=True)
    for label, line in labelled(part):
        shown.add_row(label, size(line), *(short(line[column]) for column in list(columns.values())[1:]))
    return group


def talk(part: pd.DataFrame, name: str) -> Iterator[Group]:
    """The summary table of the talk "Dense for the Price of Sparse" (2021), made from a part of `summary_table`.

    Change of the accuracy in points at each size; compute and storage at init, in training and of the trained network,
    at the smallest size. In several tables where there are more than `ACROSS` sizes.
    """
    every = sizes(part)
    for first in range(0, len(every), ACROSS):
        here = every[first : first + ACROSS]
        least = f"{here[-1][0]} {worded(here[-1])}"
        shown, group = framed(
            f"Change against dense in points, {name}",
            f"compute (FLOP: to choose U; a sample of a step; a sample) and stored bytes are at {least}",
        )
        for one in here:
            shown.add_column(worded(one), justify="right", no_wrap=True)
        for head in ("compute\ninit", "\ntrain", "\nfinal", "stored\ninit", "\ntrain", "\nfinal"):
            shown.add_column(head, justify="right", no_wrap=True)
        for label, entries in part.groupby("label", sort=False):
            dense = entries[entries["method"] == DENSE]
            cells = [dense if len(dense) else at(entries, one) for one in here]
            change = [f"{100 * float(cell['change'].iloc[0]):+.1f}" if given(cell, "change") else "-" for cell in cells]
            spent = ["flops_init", "flops_training", "flops_forward", "stored_init", "stored_training", "stored_bytes"]
            shown.add_row(
                Text(str(label)),
                *change,
                *(short(float(cells[-1][cost].iloc[0]) if len(cells[-1]) else math.nan) for cost in spent),
            )
        yield group


def equal(part: pd.DataFrame, name: str) -> Iterator[Group]:
    """A part of `at_equal`: for every budget the accuracy, and below it the size that was chosen and its cost."""
    budgets = list(part["budget"].unique())
    cost = str(part["cost"].iloc[0])
    chosen = "samples held apart" if part["chosen_by"].iloc[0] == "validation" else "the test samples themselves"
    rule = f"each method's best entry of at most that cost, by {chosen}; below: its size, and what it really costs"
    for first in range(0, len(budgets), ACROSS - 1):
        here = budgets[first : first + ACROSS - 1]
        shown, group = framed(f"Test accuracy % at equal {MEANING[cost]}, {name}", rule)
        for budget in here:
            shown.add_column(f"<= {short(budget)}", justify="right", no_wrap=True)
        for label, entries in part.groupby("label", sort=False):
            cells = []
            for budget in here:
                line = entries[entries["budget"] == budget].iloc[0]
                if not line["seeds"]:
                    cells.append("-")
                    continue
                cells.append(f"{spread(line['mean'], line['std'])}\n{size(line)}: {short(line['spent'])}")
            shown.add_row(Text(str(label)), *cells)
        yield group


def labelled(part: pd.DataFrame) -> Iterator[tuple[Text, pd.Series]]:
    """The rows, each with its method's label if that is not the one above."""
    previous = None
    for _, line in part.iterrows():
        yield Text(line["label"] if line["label"] != previous else ""), line
        previous = line["label"]


def given(cell: pd.DataFrame, name: str) -> bool:
    """Whether there is a row with such a figure."""
    return len(cell) > 0 and pd.notna(cell[name].iloc[0])


def size(line: pd.Series) -> str:
    """What was asked to train: a density, a dim, or all."""
    found = [(name, line[name]) for name in ("density", "dim") if pd.notna(line[name])]
    return worded(found[0]) if found else "dense"


def worded(one: tuple[str, float]) -> str:
    """A size without its name.

    >>> worded(("density", 0.001)), worded(("dim", 2000))
    ('0.001', '2,000')
    """
    return f"{one[1]:.4g}" if one[0] == "density" else f"{int(one[1]):,}"


def seeds(line: pd.Series) -> str:
    """How many finished, and of how many if some failed."""
    return f"{line['seeds']}" + (f"/{line['seeds'] + line['failed']}" if line["failed"] else "")


def spread(mean: float, std: float, sign: str = "") -> str:
    """A mean of fractions in per cent, and its spread where there is one."""
    if pd.isna(mean):
        return "-"
    return f"{100 * mean:{sign}.1f}" + ("" if pd.isna(std) else f" ± {100 * std:.1f}")


def counted(count: float) -> str:
    """A count, exact up to a million.

    >>> counted(53_120), counted(23_652_032), counted(float("nan"))
    ('53,120', '23.7M', '-')
    """
    return f"{int(count):,}" if pd.notna(count) and count < 1e6 else short(count)


def percent(fraction: float) -> str:
    """A fraction in per cent, in three digits.

    >>> percent(0.0099983), percent(0.00001234), percent(1.0), percent(float("nan"))
    ('1%', '0.00123%', '100%', '-')
    """
    return "-" if pd.isna(fraction) else f"{100 * fraction:.3g}%"


def short(value: float, units: Sequence[str] = ("", "k", "M", "G", "T", "P", "E")) -> str:
    """A count in three digits and a unit; "-" for one that there is not.

    >>> short(0), short(532), short(1234.5), short(999_999), short(45_678_900), short(float("nan"))
    ('0', '532', '1.23k', '1.00M', '45.7M', '-')
    """
    if pd.isna(value):
        return "-"
    for place, unit in enumerate(units):
        scaled = value / 1000**place
        if abs(scaled) < 999.5:
            digits = 0 if unit == "" or abs(scaled) >= 99.95 else 1 if abs(scaled) >= 9.995 else 2
            return f"{scaled:.{digits}f}{unit}"
    return f"{value:.3g}"
