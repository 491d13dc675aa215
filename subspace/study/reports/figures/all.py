"""All figures of a study, from its tables, for every data set and network.

Those of one size are drawn for the largest, the middle and the smallest that were asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from subspace.study.reports.figures.layer_densities import density_per_tensor
from subspace.study.reports.figures.pareto import AXES, accuracy_against_cost
from subspace.study.reports.figures.plots import accuracy_against_size
from subspace.study.reports.figures.training_curves import MEASURES, training_curves
from subspace.study.reports.formats import format_size, spread
from subspace.study.results.equal_cost import COSTS
from subspace.study.results.summary import DENSE, SETTING, by_setting, extreme_sizes, rows_of_size, sizes

FIRST = ("accuracy-density", "accuracy-dim", "accuracy-budget")
DRAWN = ("bytes", "flops", "inference")  # of `equal_cost.COSTS`
CURVES = dict(zip(MEASURES, (("accuracy", "Test accuracy"), ("loss", "Training loss")), strict=True))


class Picture(NamedTuple):
    """A figure with the name of its files, its title, what it shows in words, and the data set and network it is of.

    is_first: whether it is the one that a reader sees first. labels: of the methods in it.
    """

    name: str
    title: str
    alt: str
    place: str
    figure: Figure
    is_first: bool
    labels: list[str]


def pictures(runs: pd.DataFrame, epochs: pd.DataFrame, tensors: pd.DataFrame, table: pd.DataFrame) -> Iterator[Picture]:
    """Every figure there is something to draw for; table: the `summary_table` of the runs."""
    known = runs[["hash", "method", "data_options", "model_options"]].drop_duplicates("hash")
    epochs, tensors = (long.merge(known, on="hash") for long in (epochs, tensors))
    parts = by_setting(table)
    names = slugs([name for name, _ in parts]) if len(parts) > 1 else [""]
    for prefix, (place, part) in zip(names, parts, strict=bool(parts)):
        if not part["seeds"].any():
            continue
        here = part[SETTING].drop_duplicates()
        curves, layers = (in_order(long.merge(here, on=SETTING), part) for long in (epochs, tensors))
        for name, title, alt, figure in drawn(part, curves, layers, place):
            yield Picture(prefix + name, title, alt, place, figure, name.startswith(FIRST), [*part["label"].unique()])


def drawn(
    part: pd.DataFrame, epochs: pd.DataFrame, tensors: pd.DataFrame, place: str
) -> Iterator[tuple[str, str, str, Figure]]:
    """Name, title, words and figure, of one data set and network."""
    every, least = sizes(part), alt_text(part)
    for size in dict.fromkeys(size for size, _ in every):
        title = f"Test accuracy against {size}: {place}"
        yield (
            f"accuracy-{'budget' if size == 'bytes' else size}",
            title,
            least,
            accuracy_against_size(part, title, size),
        )
    for cost in DRAWN:
        if part[COSTS[cost]].gt(0).any():
            title = f"Test accuracy against {AXES[cost]}: {place}"
            yield f"accuracy-{cost}", title, least, accuracy_against_cost(part, title, cost)
    chosen: list[tuple[str, float] | None] = [*extreme_sizes(part)]
    for one in chosen or [None]:
        where, end = (f" at {one[0]} {format_size(one)}", f"-{one[0]}-{one[1]:g}") if one else ("", "")
        for measure, (name, what) in CURVES.items():
            rows = epochs if one is None else pd.concat([epochs[epochs["method"] == DENSE], rows_of_size(epochs, one)])
            if rows[measure].notna().any():
                title = f"{what} per epoch{where}: {place}"
                yield f"curves-{name}{end}", title, alt_text(part, one), training_curves(rows, title, measure)
        if one and len(rows := rows_of_size(tensors, one)):
            title = f"Realised density per tensor{where}: {place}"
            yield f"tensors{end}", title, f"{rows['place'].nunique()} tensors.", density_per_tensor(rows, title)


def in_order(rows: pd.DataFrame, part: pd.DataFrame) -> pd.DataFrame:
    """Rows of methods in the order of a summary table, so that a method has one colour in all figures."""
    rank = {label: number for number, label in enumerate(part["label"].unique())}
    rows = rows.sort_values("label", key=lambda labels: labels.map(rank), kind="stable")
    return rows


def alt_text(part: pd.DataFrame, one: tuple[str, float] | None = None) -> str:
    """The accuracies at a size, the smallest unless it is given, in words."""
    one = one or (sizes(part)[-1] if sizes(part) else None)
    dense = part[part["method"] == DENSE]
    rows = pd.concat([dense, rows_of_size(part, one)]) if one else dense
    means = [f"{line['label']} {spread(line['mean'], line['std'])}" for _, line in rows.iterrows() if line["seeds"]]
    return (
        f"Test accuracy in per cent{f' at {one[0]} {format_size(one)}' if one else ''}: {'; '.join(means) or 'none'}."
    )


def slugs(names: list[str]) -> list[str]:
    """Beginnings of file names, no two alike: what is left of each name that is safe anywhere.

    >>> slugs(["cifar10, resnet18", "../cifar10, ResNet18"])
    ['cifar10-resnet18-', 'cifar10-resnet18-2-']
    """
    found: list[str] = []
    for name in names:
        slug = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")[:60] or "study"
        number = 2
        while (end := slug if f"{slug}-" not in found else f"{slug}-{number}") + "-" in found:
            number += 1
        found.append(f"{end}-")
    return found
