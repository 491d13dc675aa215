"""Methods are compared at equal cost by the rule that is stated, with the cost that they really have."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subspace.study.entries.entry import Choice
from subspace.study.methods import METHODS
from subspace.study.results.equal_cost import COSTS, at_equal, grid_budgets
from subspace.study.results.summary import summary_table
from subspace.study.results.tables import runs_table
from subspace.study.spec.study import Run, Study, Training
from tests.support.records import finished

TRAIN = Training(epochs=2)


def entries(*rows):
    """A summary table of ordinary, then of a method's entries: accuracy, validation, bytes."""
    records = []
    for place, (name, mean, apart, size) in enumerate(rows):
        density = None if name == "ordinary" else 0.1 / 2**place
        record = finished(Run(Choice(name), density=density, train=TRAIN), mean, file_bytes=size)
        record["metrics"]["epochs"][-1]["validation_accuracy"] = apart
        records.append(record)
    return summary_table(runs_table(records))


def test_at_equal_cost_the_best_entry_within_the_budget_counts_with_what_it_really_cost():
    table = entries(("ordinary", 0.9, None, 1000), ("dctps", 0.8, None, 90), ("dctps", 0.85, None, 70))
    found = at_equal(table, "bytes", [50, 80, 100, 1000]).set_index(["method", "budget"])
    assert found.loc[("dctps", 50)][["mean", "spent", "density"]].isna().all()
    assert list(found.loc["dctps"]["spent"][1:]) == [70, 70, 70]
    assert list(found.loc["dctps"]["mean"][1:]) == [0.85, 0.85, 0.85]
    assert list(found.loc["ordinary"]["seeds"]) == [0, 0, 0, 1]
    assert (found["chosen_by"] == "test").all()


def test_samples_held_apart_choose_where_there_are_any():
    table = entries(("ordinary", 0.9, 0.9, 1000), ("dctps", 0.8, 0.7, 90), ("dctps", 0.75, 0.72, 70))
    (best,) = at_equal(table, "bytes", [100]).query("method == 'dctps'").itertuples()
    assert (best.mean, best.chosen_by, best.spent) == (0.75, "validation", 70)


@given(st.lists(st.tuples(st.floats(0.1, 1), st.integers(1, 10**6)), min_size=1, max_size=6), st.integers(1, 10**6))
def test_no_entry_within_a_budget_is_better_than_the_chosen_one(rows, budget):
    table = entries(*(("dctps", mean, None, size) for mean, size in rows))
    (line,) = at_equal(table, "bytes", [budget]).to_dict("records")
    within = [mean for mean, size in rows if size <= budget]
    assert line["seeds"] == bool(within)
    if within:
        assert line["mean"] == max(within)
        assert line["spent"] == min(size for mean, size in rows if mean == max(within))


@pytest.mark.parametrize("cost", COSTS)
def test_at_the_budget_of_a_size_half_of_the_methods_have_their_entry_of_this_size(cost):
    study = Study("s", tuple(METHODS), seeds=1, train=TRAIN)
    table = summary_table(runs_table(finished(one) for one in study.runs()))
    budgets = grid_budgets(table, cost)
    assert budgets == sorted(set(budgets))
    for size in (0.001, 0.01, 0.1):
        costs = table.loc[table["density"] == size, COSTS[cost]]
        assert any((costs <= budget).mean() >= 0.5 and budget <= 1.11 * costs.median() for budget in budgets)


def test_unknown_costs_and_budgets_that_are_none_are_refused():
    table = entries(("ordinary", 0.9, None, 1000))
    with pytest.raises(ValueError, match="cost must be one of bytes, .*, got 'flop'; did you mean 'flops'"):
        at_equal(table, "flop")
    with pytest.raises(ValueError, match="budgets must be positive, got"):
        at_equal(table, "flops", [0.0])
