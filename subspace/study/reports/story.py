"""What a study found, in a sentence made of its results for every data set and network."""

from __future__ import annotations

import pandas as pd

from subspace.study.reports.formats import size_in_figures, spread
from subspace.study.results.summary import DENSE, SETTING, by_setting, extreme_sizes, rows_of_size


def stories(table: pd.DataFrame, compared: pd.DataFrame) -> list[str]:
    """The sentences; table: a `summary_table`, compared: the `comparisons` of the same runs."""
    return [tell(part, compared, where) for where, part in by_setting(table) if part["seeds"].any()]


def tell(part: pd.DataFrame, compared: pd.DataFrame, where: str) -> str:
    """Of one data set and network: dense training, and the best method at the largest, middle and smallest size."""
    part = part[part["seeds"] > 0]
    seeds = int(part["seeds"].max())
    counted = f"{seeds} seeds" if seeds > 1 else "one seed"
    dense = [f"dense {spread(row['mean'], row['std'])}" for _, row in part[part["method"] == DENSE].iterrows()]
    found = [best_at(part, compared, size) for size in extreme_sizes(part)]
    return f"Test accuracy in % on {where}, {counted}: {'; '.join([*dense, *found])}."


def best_at(part: pd.DataFrame, compared: pd.DataFrame, size: tuple[str, float]) -> str:
    """The best method of a size, its accuracy, and how many of the others it is better than."""
    rows = rows_of_size(part, size)
    best = rows.sort_values("mean", ascending=False, kind="stable").iloc[0]
    asked = f"{'dim ' * (size[0] == 'dim')}{size_in_figures(size)}{' bytes' * (size[0] == 'bytes')}"
    missing = f" (of {best['seeds']:g} of {best['seeds'] + best['failed']:g} runs)" if best["failed"] else ""
    words = f"best at {asked} {best['label']} with {spread(best['mean'], best['std'])}{missing}"
    here = compared[(compared[SETTING] == best[SETTING]).all(axis=1) & (compared["other_method"] != DENSE)]
    others = rows_of_size(here, size)
    count, better = len(others), int(others["better"].sum())
    if not others["pairs"].gt(1).any():  # one seed tells nothing of the spread
        return words
    if count == 1:
        return f"{words}, {'surely' if better else 'not surely'} better than the other"
    beaten = f"all {count}" if better == count else f"{better or 'none'} of {count}"
    return f"{words}, surely better than {beaten} others"
