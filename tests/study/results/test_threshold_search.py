"""The search for the least dim, on curves that are known: it ends at neighbours on the grid, after few trainings."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subspace.study.results.threshold_search import is_hopeless, log_grid, outcome, search_thresholds


def straight(thresholds, asked_for=None):
    """A performance that rises with log dim, and is 0.9 at each seed's threshold."""

    def performance(asked):
        if asked_for is not None:
            asked_for.append(list(asked))
        return [0.9 + 0.1 * (math.log(dim) - thresholds[seed]) for dim, seed in asked]

    return performance


@given(
    st.lists(st.floats(0.1, 1.0), min_size=1, max_size=4),
    st.integers(20, 10**8),
    st.floats(0.5, 0.99),
    st.integers(1, 9),
)
def test_thresholds_are_found_exactly_on_straight_lines_by_a_dozen_trainings_a_seed(places, most, share, least):
    grid = log_grid(least, most)
    thresholds = [math.log(least) + share * place * math.log(most / least) + 1e-6 for place in places]
    asked = []
    searches = search_thresholds(straight(thresholds, asked), range(len(places)), grid, 0.9)
    for seed, search in searches.items():
        assert search.threshold() == pytest.approx(thresholds[seed], abs=1e-6)
        assert search.high == search.low + 1
        assert len(search.found) <= 12
    every = [pair for wave in asked for pair in wave]
    assert len(every) == len(set(every))  # nothing is trained twice
    assert {dim for dim, _ in every} <= set(grid)


@given(st.lists(st.floats(0, 1), min_size=200, max_size=200))
def test_any_performance_ends_between_a_dim_that_fails_and_one_that_succeeds(values):
    grid = log_grid(1, 10_000)
    found = search_thresholds(lambda asked: [values[grid.index(dim)] for dim, _ in asked], [0], grid, 0.5)[0]
    assert found.high - found.low == 1
    assert found.high == len(grid) or values[found.high] >= 0.5
    assert found.low < 0 or values[found.low] < 0.5
    assert len(found.found) <= 12


def test_what_is_beyond_the_grid_is_infinite():
    grid = log_grid(10, 100)
    searches = search_thresholds(straight([0.0, 9.0]), [0, 1], grid, 0.9)
    assert (searches[0].threshold(), searches[1].threshold()) == (-math.inf, math.inf)


@given(st.integers(1, 1000), st.integers(0, 10**9))
def test_a_grid_has_both_ends_and_no_large_steps(least, more):
    grid = log_grid(least, least + more)
    assert (grid[0], grid[-1]) == (least, least + more)
    assert grid == sorted(set(grid))
    assert all(b <= max(a + 1, 1.16 * a + 1) for a, b in pairwise(grid))


@given(st.floats(0.1, 20), st.integers(4, 40), st.floats(0.05, 0.95))
def test_a_curve_that_flattens_is_never_stopped_if_it_comes_to_the_target(pace, epochs, target):
    values = [1 - math.exp(-n / pace) for n in range(1, epochs + 1)]
    stopped = [done for done in range(1, epochs + 1) if is_hopeless(values[:done], epochs, target)]
    if values[-1] >= target:
        assert not stopped
    else:
        assert stopped[-1:] == [epochs]
    assert not any(done < epochs / 2 for done in stopped)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=20), st.floats(0, 1))
def test_a_training_counts_for_the_same_whether_it_is_stopped_or_not(values, target):
    epochs = len(values)
    stops = [done for done in range(1, epochs) if is_hopeless(values[:done], epochs, target)]
    if stops:
        assert {outcome(values[:done], epochs, target) for done in range(stops[0], epochs + 1)} == {
            max(values[: stops[0]])
        }
        assert outcome(values, epochs, target) < target
    else:
        assert outcome(values, epochs, target) == values[-1]


def test_a_flat_curve_is_stopped_after_half_of_its_epochs():
    assert [is_hopeless([0.1] * done, 10, 0.9) for done in (1, 4, 5, 9)] == [False, False, True, True]
