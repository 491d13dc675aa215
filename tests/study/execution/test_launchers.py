"""One law for all launchers: whoever trains, every run has its result, and no failure stops another."""

import os
import time
from pathlib import Path

import pytest

from subspace.study.entries.entry import Choice
from subspace.study.execution.callbacks import Callback
from subspace.study.execution.launchers import make_launcher
from subspace.study.execution.runner import carry_out
from subspace.study.results.disk import StorageError
from subspace.study.results.store import Store
from subspace.study.spec.study import Run, Training
from subspace.study.training.run import train

LAUNCHERS = {
    "inline": {},
    "pool": {"workers": 2},
    "ray": {},
    "slurm": {"cluster": "local"},
}
MARKS = {"pool": pytest.mark.slow, "ray": pytest.mark.ray, "slurm": pytest.mark.slurm}
EACH = [pytest.param(name, marks=MARKS.get(name, ())) for name in LAUNCHERS]


def run(seed=0, fault="", processes=1, epochs=2):
    setting = Training(epochs=epochs, batch=20, processes=processes)
    model = Choice("tiny:model", {"fault": fault} if fault else {})
    return Run(Choice("dctps"), model, Choice("tiny:data"), density=0.3, seed=seed, train=setting)


@pytest.fixture(scope="module", params=EACH)
def name(request, tiny_project):
    """Of a launcher. All tests of one follow another, those of Ray in a single one."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "ray":
            request.getfixturevalue("started_ray")
        if request.param == "slurm":
            pytest.importorskip("submitit")
            patch.setattr("submitit.core.core.Job._results_timeout_s", 0)  # there is no slow file system to wait for
        yield request.param


@pytest.fixture
def launched(name):
    """What makes a launcher of each kind for a store."""
    return lambda store: make_launcher(name, store.folder, Training(), LAUNCHERS[name])


def figures(metrics):
    return [(epoch["train_loss"], epoch["test_accuracy"]) for epoch in metrics["epochs"]]


def test_every_run_has_its_result_and_no_failure_stops_another(launched, tmp_path):
    store, here = Store(tmp_path), os.getpid()
    launcher = launched(store)
    runs = [run(0), run(3, "raises"), run(1)]
    runs += [run(4, "killed")] if type(launcher).__name__ != "Inline" else []
    carry_out(runs, store, launcher, Callback())
    for each in runs:
        record = store.read(each)
        if "fault" not in each.model.options:
            assert figures(record["metrics"]) == figures(train(each)), record["error"]
        elif each.model.options["fault"] == "raises":
            assert (record["error"], record["attempts"]) == ("LookupError: no such thing", 2)
        else:
            assert any(word in record["error"] for word in ("SIGKILL", "died", "no memory left")), record["error"]
            assert record["attempts"] == 2
    assert os.getpid() == here


def test_a_store_that_cannot_be_written_stops_the_study(launched, tmp_path):
    store, each = Store(tmp_path), run(seed=11)
    store.directory(each).parent.mkdir(parents=True)
    store.directory(each).write_text("in the way")
    with pytest.raises(StorageError, match=f"{each.hash}.* must be writable"):
        carry_out([each], store, launched(store), Callback())


def test_leaving_the_block_stops_what_has_not_ended_and_it_can_be_resumed(launched, tmp_path):
    store, each = Store(tmp_path), run(seed=12, epochs=3000)
    launcher = launched(store)
    if type(launcher).__name__ == "Inline":
        pytest.skip("trains before it returns")
    with launcher:
        launcher.submit([each])
        while not store.progress(each):
            time.sleep(0.05)
    free = False
    while not free:
        time.sleep(0.05)
        with store.held(each) as free:
            assert store.read(each) is None
    assert store.read_state(each) is not None


@pytest.mark.torchrun
def test_several_processes_train_a_run_together_anywhere(launched, tmp_path):
    store, each = Store(tmp_path), run(seed=13, processes=2)
    carry_out([each], store, launched(store), Callback())
    record = store.read(each)
    assert record["error"] is None, record["traceback"]
    assert record["metrics"]["reduced_bytes"] > 0
    alone = train(run(seed=13))
    for one, other in zip(figures(record["metrics"]), figures(alone), strict=True):
        assert one == pytest.approx(other, abs=0.03)
    assert Path("tiny.py").exists()
