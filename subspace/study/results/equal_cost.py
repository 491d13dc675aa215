"""Methods compared at an equal cost in place of an equal number of trained weights.

The rule, for a budget: of a method's entries (its rows of `summary.summary_table`) whose cost, the mean over seeds, is
at most the budget, the best one counts, with the cost that it really has. The best is the one of the highest mean
accuracy on samples held apart; where a study holds none apart, on the test samples, which flatters methods with more
entries a little. A method all of whose entries cost more has none, and is there with NaN.

The budgets are those of the grid unless they are given: for every size, the median cost of all entries of this size
(the dense network is one size), plus 5 %, in two digits. So about half of the methods, and those that cost hardly
more, are compared at the size itself, and the other ones at what they can afford.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from subspace.study.entries.lookup import lookup
from subspace.study.results.summary import ENTRY, SETTING
from subspace.study.spec.study import SIZES

COSTS = {
    "bytes": "file_bytes",
    "stored": "stored_training",
    "flops": "flops_total",
    "memory": "peak_bytes",
    "inference": "flops_forward",
}
MEANING = {
    "bytes": "checkpoint file",
    "stored": "weights as held in training",
    "flops": "FLOPs to choose U and to train",
    "memory": "peak memory of a training step",
    "inference": "FLOPs of a forward pass",
}
COLUMNS = [*SETTING, "cost", "budget", *ENTRY, "mean", "std", "seeds", "failed", "spent", "chosen_by"]


def at_equal(table: pd.DataFrame, cost: str, budgets: Sequence[float] | None = None) -> pd.DataFrame:
    """One row per data set, network, budget and method: its best entry of at most that cost, and what it cost.

    table: a `summary.summary_table`. cost: one of `COSTS`. spent: in bytes or FLOPs; NaN, as all figures are, where a
    method has no entry. ValueError for another cost and for budgets that are not positive.
    """
    lookup(cost, COSTS, "cost")
    if budgets is not None and not all(budget > 0 for budget in budgets):
        raise ValueError(f"budgets must be positive, got {list(budgets)}")
    rows = []
    for _, part in table.groupby(SETTING, dropna=False, sort=False):
        measure = "validation" if part.loc[part["seeds"] > 0, "validation"].notna().all() else "mean"
        for budget in grid_budgets(part, cost) if budgets is None else budgets:
            for _, entries in part.groupby(["method", "label", "options"], sort=False):
                rows.append(entry(entries, cost, float(budget), measure))
    found: pd.DataFrame = pd.DataFrame(rows, columns=COLUMNS).astype({"dim": "Int64", "bytes": "Int64"})
    return found


def entry(entries: pd.DataFrame, cost: str, budget: float, measure: str) -> dict[str, object]:
    """A method's row at a budget."""
    known = {"cost": cost, "budget": budget, "chosen_by": "validation" if measure == "validation" else "test"}
    within = entries[(entries["seeds"] > 0) & (entries[COSTS[cost]] <= budget)]
    if not len(within):
        same = {name: entries.iloc[0][name] for name in [*SETTING, "method", "options", "label"]}
        return {**same, **known, "seeds": 0, "failed": int(entries["failed"].sum())}
    best = within.sort_values([measure, COSTS[cost]], ascending=[False, True], kind="stable").iloc[0]
    return {**{name: best.get(name) for name in COLUMNS}, **known, "spent": best[COSTS[cost]]}


def grid_budgets(table: pd.DataFrame, cost: str) -> list[float]:
    """The budgets of one data set and network, rising; none where no cost was measured."""
    medians = table.groupby([*SIZES], dropna=False)[COSTS[cost]].median().dropna()
    return sorted({float(f"{1.05 * median:.1e}") for median in medians if median > 0})
