"""An estimate is near what a real study takes, grows with what is asked, and trusts what has been finished."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from subspace.study.entries.entry import Choice
from subspace.study.execution import estimate as estimates
from subspace.study.execution import rehearsal
from subspace.study.execution.callbacks import Callback
from subspace.study.execution.estimate import Estimate, duration, estimate, packed
from subspace.study.execution.launchers.pool import Pool
from subspace.study.execution.rehearsal import Cost, Rehearsal, kind, rehearsed, usual
from subspace.study.execution.runner import carry_out
from subspace.study.results.store import Store
from subspace.study.spec.study import Run, Study, Training
from subspace.study.training.run import train
from subspace.study.training.state import pack

DATA = """
import torch
from subspace.study.data import Data, Tensors

def make():
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(1200, 1, 28, 28, generator=generator), torch.arange(1200) % 10
    return Data(Tensors(images[:800], labels[:800]), Tensors(images[800:], labels[800:]), 10)

def none():
    raise OSError("no such images")
"""
FIXED = Cost(fixed=1.0, step=0.01, test=1e-4, state=1000, record=3000, epoch=100, dense=5000, rounds=0)


@pytest.fixture
def noise(tmp_path, monkeypatch):
    """A data set at noise_images:make, for other processes too."""
    (tmp_path / "noise_images.py").write_text(DATA)
    monkeypatch.syspath_prepend(tmp_path)
    return "noise_images:make"


def study(noise="mnist5k", **changes):
    """Ordinary training, and DCTpS twice; two seeds."""
    train = Training(epochs=changes.pop("epochs", 3), batch=20)
    return Study(
        **{"methods": ("ordinary", "dctps"), "densities": (0.1, 0.01), "seeds": 2, "data": (noise,), "train": train}
        | changes
    )


@pytest.fixture
def imagined(monkeypatch):
    """Every kind of run costs FIXED, with 1,000 samples to train on and 500 to test on; nothing is run."""

    def rehearse(runs):
        costs = {kind(run): FIXED for run in [*map(usual, runs), *runs]}
        data = {str(run.data): (1000, 500) for run in runs}
        return Rehearsal(1.5, 0.5, 10**8, dict.fromkeys(data, 3.0), data, costs)

    monkeypatch.setattr(estimates, "_rehearsed", rehearse)


def test_an_estimate_is_near_what_the_study_takes_then(noise, tmp_path, monkeypatch):
    runs, store = study(noise, seeds=1, epochs=2).runs(), Store(tmp_path / "out")
    rehearse, found = estimates._rehearsed, []
    monkeypatch.setattr(estimates, "_rehearsed", lambda runs: found.append(rehearse(runs)) or found[-1])
    for attempt in range(3):  # another process may slow either down
        foreseen = estimate(runs, store, 2)
        began = time.monotonic()
        carry_out(runs, store, Pool(store.folder, 2), Callback())
        seconds = time.monotonic() - began
        if seconds / 3 < foreseen.seconds < 3 * seconds:
            break
        assert attempt < 2, (foreseen, seconds)
        store = Store(tmp_path / f"again-{attempt}")
    records = [store.path(run) for run in runs]
    on_disk = sum(path.stat().st_size for path in records)
    assert on_disk / 2 < foreseen.disk < 2 * on_disk
    assert 3 * 100e6 < foreseen.memory < 3 * 3e9
    assert (foreseen.runs, foreseen.epochs, foreseen.known) == (3, 6, 0)

    monkeypatch.setattr(estimates, "_rehearsed", lambda runs: found[-1])
    known = estimate(runs, store, 2)  # the same runs once more, were they to run again
    trained = [json.loads(path.read_text())["metrics"]["seconds"] for path in records]
    begin = found[-1].start + max(found[-1].loading.values()) + found[-1].warming
    assert (known.known, known.seconds) == (3, pytest.approx(begin + packed(trained, 2)))


@pytest.mark.parametrize("name", ["dctps", "imp"])
def test_the_state_of_a_run_is_foreseen_within_a_factor_of_two(noise, name):
    options = {"rounds": 1} if name == "imp" else {}
    run = Run(Choice(name, options), data=Choice(noise), density=0.1, train=Training(epochs=1, batch=100))
    sizes = []

    class Keeper(rehearsal.Notes):
        def save(self, state):
            sizes.append(len(pack(state)))

    train(run, Keeper())
    found = rehearsal.rehearse([run], time.time())
    assert max(sizes) / 2 < found.state(run) < 2 * max(sizes)
    assert found.cost(run).rounds == (name == "imp")
    assert len(found.costs) == 2


def test_rounds_are_counted_and_not_trained(noise):
    run = Run(Choice("imp", {"rounds": 4}), data=Choice(noise), density=0.1, train=Training(batch=100))
    start = time.perf_counter()
    cost = rehearsed(run, 2)
    assert cost.rounds == 4
    assert time.perf_counter() - start < 10
    found = Rehearsal(samples={noise: (800, 400)}, costs={kind(run): cost, kind(usual(run)): FIXED})
    once = replace(cost, rounds=0)
    rounds = found.seconds(run) - replace(found, costs={**found.costs, kind(run): once}).seconds(run)
    assert rounds == pytest.approx(4 * 4 * 8 * FIXED.step)  # rounds, epochs, steps


def test_seconds_add_up_by_hand(imagined, tmp_path):
    runs = study(epochs=4).runs()
    each = 1.0 + 4 * (1000 / 20 * 0.01 + 500 * 1e-4)
    found = estimate(runs, Store(tmp_path), 2)
    assert found.seconds == pytest.approx(2 + 3 + 3 * each)
    assert found.disk == 6 * (3000 + 4 * 100)
    assert found.under_way == 2 * 2 * 1000
    assert found.memory == 3 * 10**8


@pytest.mark.parametrize("more", [{"epochs": 5}, {"seeds": 3}, {"densities": (0.1, 0.01, 0.001)}])
def test_it_grows_with_epochs_and_runs_and_falls_with_workers(imagined, tmp_path, more):
    store = Store(tmp_path)
    less, most = estimate(study().runs(), store, 2), estimate(study(**more).runs(), store, 2)
    assert less.seconds < most.seconds
    assert less.disk < most.disk
    assert less.epochs < most.epochs
    alone, many = estimate(study().runs(), store, 1), estimate(study().runs(), store, 100)
    assert alone.seconds > less.seconds > many.seconds
    assert alone.memory < less.memory < many.memory
    assert many.workers == 6


def test_kinds_that_were_not_rehearsed_take_the_methods_own_cost():
    run = Run(Choice("random_subspace"), density=0.1, train=Training(epochs=1, batch=100))
    found = Rehearsal(samples={"mnist5k": (1000, 500)}, costs={kind(usual(run)): FIXED})
    assert found.seconds(run) == pytest.approx(1.0 + 10 * 0.01 * 11 + 500 * 1e-4)
    validated = replace(run, train=replace(run.train, validation=0.5))
    found.costs[kind(usual(validated))] = FIXED
    assert found.seconds(validated) == pytest.approx(1.0 + 5 * 0.01 * 11 + 1000 * 1e-4)


def record(run, seconds, status="finished"):
    return {"status": status, "attempts": 1, "error": None, "metrics": {"seconds": seconds}}


def test_finished_runs_are_trusted_first_those_of_the_same_size(imagined, tmp_path):
    store = Store(tmp_path)
    one, other = (Run(Choice("dctps"), density=density, seed=7) for density in (0.1, 0.01))
    for seed, seconds in enumerate((100.0, 300.0, 101.0)):
        store.write(replace(one, seed=seed), record(one, seconds))
    found = estimate([one, other], store, 2)
    assert (found.known, found.seconds) == (2, pytest.approx(5 + 101))
    store.write(replace(other, seed=1), record(other, 7.0))
    assert estimate([other], store, 1).seconds == pytest.approx(5 + 7)
    elsewhere = replace(one, train=Training(epochs=9))
    assert estimate([elsewhere], store, 1).known == 0


def test_failed_and_damaged_results_tell_nothing(imagined, tmp_path):
    store, run = Store(tmp_path), Run(Choice("dctps"), density=0.1)
    store.write(replace(run, seed=1), record(run, 100.0, "failed"))
    for seed, text in ((2, "{"), (3, "[]"), (4, '{"status": "finished"}'), (5, '{"status": "finished", "metrics": 3}')):
        path = store.path(replace(run, seed=seed))
        path.parent.mkdir(parents=True)
        path.write_text(text)
    strange = {"configuration": {**run.configuration(), "method": {"name": "gone", "options": {}}}}
    store.path(replace(run, seed=2)).write_text(json.dumps({**record(run, 1.0), **strange}))
    assert estimate([run], store, 1).known == 0


def test_nothing_is_measured_for_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(estimates, "_rehearsed", None)
    assert str(estimate([], Store(tmp_path), 2)) == "nothing would run: every run is finished"


def test_what_the_first_steps_raise_is_told_in_a_sentence(noise, tmp_path):
    run = Run(Choice("ordinary"), data=Choice("noise_images:none"))
    with pytest.raises(ValueError, match="^OSError: no such images$"):
        estimate([run], Store(tmp_path / "out"), 1)


def test_a_process_that_dies_is_an_error(noise, tmp_path):
    text = Path(tmp_path / "noise_images.py").read_text() + "\ndef die():\n    import os\n    os._exit(9)\n"
    (tmp_path / "noise_images.py").write_text(text)
    run = Run(Choice("ordinary"), data=Choice("noise_images:die"))
    with pytest.raises(ChildProcessError, match="^the first steps of every run must be possible here, got a process"):
        estimate([run], Store(tmp_path / "out"), 1)


def test_it_reads_as_lines_for_people():
    text = str(Estimate(48, 192, 2, 40, 94.2, 1_700_000_000, 210_000, 3_000_000))
    assert text.splitlines() == [
        "would run: 48 runs, 192 epochs in all, 2 at a time",
        "time: about 1 min 34 s (40 timed by finished ones, 8 by steps timed here)",
        "memory: about 1.7 GB; disk: about 210.0 kB, and 3.0 MB meanwhile",
    ]


def test_the_longest_runs_go_first():
    assert packed([1, 1, 4, 2], 2) == 4
    assert packed([3, 3, 3], 2) == 6
    assert packed([5], 8) == 5
    assert [duration(s) for s in (0.4, 59, 3600, 100_000)] == ["0 s", "59 s", "1 h 0 min", "1 d 3 h"]
    assert torch.get_num_threads() >= 1
