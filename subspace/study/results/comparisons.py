"""Methods compared in pairs: the same data, network, size and seed, so that what a seed does to both cancels.

Two intervals are given for the mean of the differences. Student's takes them to be normal, and holds from two seeds on.
The bootstrap's takes nothing for granted, but never reaches beyond the worst and the best pair: of n seeds it covers at
most 1 - 2^(1 - n), which is 95 % from 6 seeds on. A method is called better where both intervals are above 0.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import scipy

from subspace.study.results.summary import DENSE, SETTING
from subspace.study.spec.study import SIZES

LEVEL, POWER, MOST = 0.95, 0.8, 10_000  # MOST: the seeds that are counted up to
EQUAL = 1e-12  # accuracies that differ by less are the same
SIZE, METHOD = [*SIZES], ["method", "label", "options"]
OTHER = [f"other_{name}" for name in METHOD]
FIGURES = ["pairs", "difference", "low", "high", "bootstrap_low", "bootstrap_high", "better"]


def comparisons(runs: pd.DataFrame) -> pd.DataFrame:
    """The best method of every size on each data set and network, against each of the others.

    Args:
        runs: a `tables.runs_table`, all of it trained alike.

    Returns:
        One row for each other method at a size, the dense network among them. difference: the mean of best minus other
        over equal seeds, of which there are `pairs`, in test accuracy; low, high: Student's 95 % interval for it;
        bootstrap_low, bootstrap_high: that of 9,999 resamples, by percentiles. All are fractions. Intervals are NaN for
        fewer than two pairs, and Student's where all differences are equal, which tells nothing of their spread.
        better: whether both are above 0. The best is the method of a size with the highest mean.
    """
    rows = []
    for where, sized, dense in _accuracies(runs):
        best = sized.columns.to_list()[int(sized.mean().to_numpy().argmax())]
        for other in [*dense.columns, *sized.columns.drop([best])]:
            same = dense if other in dense.columns else sized
            figures = compare((sized[best] - same[other]).dropna())
            rows.append([*where, *best, *other, *figures])
    types = {"density": "float64", "dim": "Int64", "bytes": "Int64", "pairs": "int64", "better": "bool"}
    table: pd.DataFrame = pd.DataFrame(rows, columns=[*SETTING, *SIZE, *METHOD, *OTHER, *FIGURES]).astype(types)
    return table


def compare(differences: pd.Series) -> list[float]:
    """The figures of a comparison: `FIGURES`, from the differences of equal seeds."""
    pairs, nothing = len(differences), (float("nan"), float("nan"))
    student = bootstrap = nothing
    if pairs > 1:
        resampled = scipy.stats.bootstrap((differences,), np.mean, method="percentile", rng=np.random.default_rng(0))
        bootstrap = (float(resampled.confidence_interval.low), float(resampled.confidence_interval.high))
        if differences.max() - differences.min() > EQUAL:
            found = scipy.stats.ttest_1samp(differences, 0).confidence_interval(LEVEL)
            student = (float(found.low), float(found.high))
    better = student[0] > 0 and bootstrap[0] > 0
    return [pairs, float(differences.mean()) if pairs else float("nan"), *student, *bootstrap, better]


def typical_spreads(runs: pd.DataFrame) -> dict[tuple[str, float], float]:
    """By size, as ("density", 0.1), the median over pairs of methods of the standard deviation of their differences.

    Differences are those of equal seeds, in test accuracy. Pairs that never differ, as two at chance, do not count.
    """
    found: dict[tuple[str, float], list[float]] = {}
    for where, sized, _ in _accuracies(runs):
        for size in [(name, value) for name, value in zip(SIZE, where[-len(SIZE) :], strict=True) if pd.notna(value)]:
            pairs = (sized[one] - sized[other] for one, other in itertools.combinations(sized.columns, 2))
            found.setdefault(size, []).extend(float(each.std()) for each in pairs if each.std() > EQUAL)
    return {size: median(deviations) for size, deviations in found.items() if deviations}


def seeds_needed(difference: float, spread: float) -> int:
    """How many seeds a paired t-test needs to see a mean difference of this size.

    Args:
        difference: of the two methods, above 0.
        spread: the standard deviation of the differences of equal seeds, in the same unit.

    Returns:
        The least number for which a difference is found at the level of 5 %, two-sided, in 80 % of all studies, by the
        noncentral t distribution; `MOST` where it is not fewer.
    """
    least, most = 2, MOST
    while least < most:  # the power grows with the seeds
        middle = (least + most) // 2
        least, most = (least, middle) if _power(difference / spread, middle) >= POWER else (middle + 1, most)
    return least


def _power(effect: float, seeds: int) -> float:
    """Of a paired t-test; effect: the difference in standard deviations."""
    bound, shift = scipy.stats.t.ppf((1 + LEVEL) / 2, seeds - 1), effect * seeds**0.5
    return float(scipy.stats.nct.sf(bound, seeds - 1, shift)) if shift < 30 else 1.0  # beyond, nct is at its limits


def _accuracies(runs: pd.DataFrame) -> Iterator[tuple[list[Any], pd.DataFrame, pd.DataFrame]]:
    """For every data set, network and size: which (`SETTING`, `SIZE`), and the test accuracies of finished runs.

    A row per seed, a column per method: first of those that have the size, then of the dense network.
    """
    finished = runs[runs["status"] == "finished"].drop_duplicates("hash")
    for _, part in finished.groupby(SETTING, dropna=False, sort=False):
        dense = _by_seed(part[part["method"] == DENSE])
        others = part[part["method"] != DENSE]
        for size, same in others.groupby(SIZE, dropna=False, sort=False):
            yield [*part[SETTING].iloc[0], *size], _by_seed(same), dense


def _by_seed(rows: pd.DataFrame) -> pd.DataFrame:
    table: pd.DataFrame = rows.set_index(["seed", *METHOD])["test_accuracy"].unstack(METHOD)
    return table
