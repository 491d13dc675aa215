"""The sentence that opens a report says what the runs say."""

import pytest

from subspace.study.entries.entry import Choice
from subspace.study.reports.story import stories
from subspace.study.results.comparisons import comparisons
from subspace.study.results.summary import summary_table
from subspace.study.results.tables import runs_table
from subspace.study.spec.study import Run, Training
from tests.support.records import failure, finished

TRAIN = Training(epochs=1)


def told(*rows):
    """The sentences for rows of method, size, and the accuracies of the seeds."""
    records = []
    for name, size, accuracies in rows:
        for seed, last in enumerate(accuracies):
            run = Run(Choice(name), Choice("mlp"), Choice("digits"), seed=seed, train=TRAIN, **size)
            records.append(failure(run) if last is None else finished(run, last))
    runs = runs_table(records)
    return stories(summary_table(runs), comparisons(runs))


def test_the_best_of_every_size_is_named_with_its_spread_and_whom_it_is_better_than():
    assert told(
        ("ordinary", {}, (0.98, 0.96)),
        ("rigl", {"density": 0.01}, (0.9, 0.92)),
        ("dctps", {"density": 0.01}, (0.89, 0.92)),
        ("rigl", {"density": 0.0001}, (0.1, 0.102)),
        ("dctps", {"density": 0.0001}, (0.8, 0.81)),
    ) == [
        "Test accuracy in % on digits, mlp, 2 seeds: dense 97.0 ± 1.4; best at 1 % RigL, ERK with 91.0 ± 1.4, not "
        "surely better than the other; best at 0.01 % DCTpS, EPL with 80.5 ± 0.7, surely better than the other."
    ]


def test_one_seed_is_better_than_nobody_and_without_a_second_method_nobody_is_named():
    sizes = [{"dim": dim} for dim in (9000, 500, 30, 3)]
    (one,) = told(*(("dctps", size, (0.5,)) for size in sizes), ("rigl", {"dim": 9000}, (0.4,)))
    assert one == (
        "Test accuracy in % on digits, mlp, one seed: best at dim 9,000 DCTpS, EPL with 50.0; "
        "best at dim 30 DCTpS, EPL with 50.0; best at dim 3 DCTpS, EPL with 50.0."
    )


def test_failures_of_the_best_are_told_and_sizes_have_units():
    (one,) = told(("dctps", {"bytes": 6000}, (0.9, None, None)), ("rigl", {"bytes": 6000}, (0.5, 0.5, 0.5)))
    assert "best at 6,000 bytes DCTpS, EPL with 90.0 (of 1 of 3 runs)" in one


@pytest.mark.parametrize("last", [(None,), ()])
def test_without_a_finished_run_there_is_no_story(last):
    assert told(("dctps", {"density": 0.1}, last)) == []
