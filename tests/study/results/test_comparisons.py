"""Paired comparisons: the differences of equal seeds, intervals by other formulas, and the seeds a study needs."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from subspace.study.entries.entry import Choice
from subspace.study.results.comparisons import MOST, comparisons, seeds_needed, typical_spreads
from subspace.study.results.tables import runs_table
from subspace.study.spec.study import Run, Training
from tests.support.records import failure, finished

TRAIN = Training(epochs=1)


def run(name, seed, density=0.01, **options):
    return Run(Choice(name, options), density=None if name == "ordinary" else density, seed=seed, train=TRAIN)


def table(**accuracies):
    """The runs of methods whose accuracies are given by seed; None: that run failed."""
    runs = [(run(name, seed), last) for name, each in accuracies.items() for seed, last in enumerate(each)]
    return runs_table(failure(one) if last is None else finished(one, last) for one, last in runs)


def test_the_best_is_compared_with_each_other_method_and_with_the_dense_network():
    found = comparisons(table(dctps=(0.9, 0.8, 0.85), rigl=(0.5, 0.6, 0.4), synflow=(0.7, 0.85, 0.6), ordinary=(0.95,)))
    assert set(found["method"]) == {"dctps"}
    assert list(found["other_method"]) == ["ordinary", "rigl", "synflow"]
    assert list(found["pairs"]) == [1, 3, 3]
    assert list(found["difference"]) == pytest.approx([-0.05, 0.35, 2 / 15])
    assert list(found["better"]) == [False, True, False]


@settings(max_examples=10)
@given(st.lists(st.floats(-0.4, 0.4), min_size=2, max_size=4, unique_by=lambda d: round(d, 3)))
def test_the_intervals_are_those_of_the_formulas(differences):
    n, mean = len(differences), float(np.mean(differences))
    one, other = [0.5 + d for d in differences], [0.5] * n
    if mean < 0:
        one, other, differences, mean = other, one, [-d for d in differences], -mean
    ahead = "dctps" if np.mean(one) >= np.mean(other) else "rigl"
    row = comparisons(table(dctps=one, rigl=other)).iloc[0]
    sign = 1 if row["method"] == ahead == "dctps" else -1
    assert row["difference"] == pytest.approx(sign * mean, abs=1e-9)
    half = stats.t.ppf(0.975, n - 1) * np.std(differences, ddof=1) / math.sqrt(n)
    assert sorted([row["low"], row["high"]]) == pytest.approx(
        sorted([sign * mean - half, sign * mean + half]), abs=1e-9
    )
    means = sign * np.mean(list(itertools.product(differences, repeat=n)), axis=1)  # of every resample there is
    for bound, share in ("bootstrap_low", 0.025), ("bootstrap_high", 0.975):  # the quantile, up to chance and rounding
        assert np.mean(means < row[bound] - 1e-9) - 0.01 <= share <= np.mean(means <= row[bound] + 1e-9) + 0.01
    assert row["better"] == (row["low"] > 0 and row["bootstrap_low"] > 0)


def test_only_seeds_that_finished_on_both_sides_are_pairs():
    row = comparisons(table(dctps=(0.9, 0.8, None, 0.7), rigl=(0.5, None, 0.9, 0.4))).iloc[0]
    assert (row["pairs"], row["difference"]) == (2, pytest.approx(0.35))


@pytest.mark.parametrize("count", [1, 3])
def test_nothing_is_called_better_without_a_spread(count):
    row = comparisons(table(dctps=(0.9,) * count, rigl=(0.5,) * count)).iloc[0]
    assert math.isnan(row["low"])
    assert not row["better"]


def test_sizes_and_options_are_told_apart_and_without_runs_there_is_nothing():
    grid = [
        run("dctps", seed, density, **more)
        for seed in (0, 1)
        for density in (0.1, 0.01)
        for more in ({}, {"gain": 2.0})
    ]
    found = comparisons(runs_table(map(finished, grid)))
    assert list(found["density"]) == [0.1, 0.01]
    assert (found["options"] != found["other_options"]).all()
    assert not len(comparisons(runs_table([])))
    assert typical_spreads(runs_table([])) == {}


def test_the_typical_spread_is_the_median_over_pairs_that_differ():
    runs = table(dctps=(0.9, 0.8), rigl=(0.9, 0.8), synflow=(0.6, 0.9), snip=(0.6, 0.7))
    expected = np.median(
        [abs(a - b) / math.sqrt(2) for a, b in [(0, 0.3 + 0.1), (0.1, -0.1), (0.4, 0), (0.2, 0), (0.2, 0)]]
    )
    assert typical_spreads(runs) == {("density", 0.01): pytest.approx(expected)}


@pytest.mark.parametrize(("difference", "spread"), [(1, 1), (3, 2), (1, 2)])
def test_so_many_seeds_find_the_difference_four_times_in_five(difference, spread):
    seeds, draws = seeds_needed(difference, spread), np.random.default_rng(0).standard_normal((5_000, 80))

    def found(n):
        return (stats.ttest_1samp(difference + spread * draws[:, :n], 0, axis=1).pvalue < 0.05).mean()

    assert found(seeds) > 0.77
    assert found(seeds - 1) < 0.83


def test_a_large_difference_takes_two_seeds_and_a_tiny_one_more_than_are_counted():
    assert seeds_needed(1, 1e-9) == 2
    assert seeds_needed(1e-9, 1) == MOST
