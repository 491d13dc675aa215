"""What would run is counted, and its time is that of finished runs or not known."""

import json
from dataclasses import replace

import pytest

from subspace.study.entries.entry import Choice
from subspace.study.execution.estimate import Estimate, estimate
from subspace.study.results.store import Store
from subspace.study.spec.study import Run, Study, Training

RUN = Run(Choice("dctps"), density=0.1)


def timed(store, run, seconds, status="finished"):
    store.write(run, {"status": status, "attempts": 1, "error": None, "metrics": {"seconds": seconds}})


def test_runs_and_epochs_are_counted_and_the_time_is_not_known_at_first(tmp_path):
    runs = Study(methods=("dctps", "imp"), densities=(0.1, 0.01), seeds=2, train=Training(epochs=3)).runs()
    found = estimate(runs, Store(tmp_path), 3)
    assert found == Estimate(runs=8, epochs=4 * 3 + 4 * 30, workers=3, known=0, seconds=0)
    assert str(found) == "would run: 8 runs, 132 epochs, 3 at a time\ntime: unknown until a run has finished"
    assert estimate(runs, Store(tmp_path), 100).workers == 8


def test_finished_runs_of_the_same_size_count_first_then_those_of_others(tmp_path):
    store, other = Store(tmp_path), replace(RUN, density=0.01)
    for seed, seconds in enumerate((100.0, 300.0, 101.0)):
        timed(store, replace(RUN, seed=seed), seconds)
    assert estimate([replace(RUN, seed=7), replace(other, seed=7)], store, 2) == Estimate(2, 8, 2, 2, 101)
    timed(store, replace(other, seed=1), 7.0)
    assert estimate([other], store, 1).seconds == 7
    assert estimate([replace(RUN, train=Training(epochs=9))], store, 1).known == 0
    some = str(estimate([RUN, Run(Choice("ordinary"))], store, 1))
    assert some.endswith("time: at least 1 min 41 s, by finished runs; unknown for 1 runs")


def test_the_longest_runs_are_dealt_out_first(tmp_path):
    store = Store(tmp_path)
    runs = [replace(RUN, density=density) for density in (0.1, 0.2, 0.3, 0.4)]
    for run, seconds in zip(runs, (1.0, 1.0, 4.0, 2.0), strict=True):
        timed(store, replace(run, seed=1), seconds)
    assert [estimate(runs, store, workers).seconds for workers in (1, 2, 4)] == [8, 4, 4]


@pytest.mark.parametrize(
    "text", ["{", "[]", "[" * 100_000, '{"status": "finished"}', '{"status": "finished", "metrics": 3}', None]
)
def test_failed_damaged_and_foreign_results_tell_nothing(text, tmp_path):
    store, other = Store(tmp_path), replace(RUN, seed=2)
    timed(store, replace(RUN, seed=1), 100.0, "failed")
    timed(store, other, 1.0)
    strange = json.loads(store.path(other).read_text())
    strange["configuration"]["method"] = {"name": "gone", "options": {}}
    store.path(other).write_text(json.dumps(strange) if text is None else text)
    assert estimate([RUN], store, 1).known == 0


def test_nothing_is_estimated_for_nothing(tmp_path):
    assert str(estimate([], Store(tmp_path), 2)) == "nothing would run: every run is finished"
