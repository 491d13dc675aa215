"""Laws of the launcher on Slurm, by submitit's own executor of local processes."""

import os
import time

import pytest
from clusters import MODULE, carried_out, run

from subspace.study.config import Choice, Run, Training
from subspace.study.launchers.slurm import Slurm, Task
from subspace.study.store import StorageError, Store

submitit = pytest.importorskip("submitit")
LOCAL = {"cluster": "local"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the module of the study, which is the present one meanwhile."""
    folder, before = tmp_path_factory.mktemp("slurm"), os.getcwd()
    (folder / "fragile.py").write_text(MODULE)
    os.chdir(folder)
    yield folder
    os.chdir(before)


def test_every_run_comes_to_its_end_and_failures_are_tried_once_more(place):
    store, runs = Store("results"), [run(), run("raises"), run("killed")]
    told = carried_out(runs, store, Slurm(store.folder, LOCAL))
    assert dict(told.ended) == dict(zip(runs, ["finished", "failed", "failed"], strict=True))
    assert len(told.ended) == 3
    assert store.read(runs[1])["error"] == "LookupError: no such thing"
    assert store.read(runs[2])["error"].startswith("the job ")
    assert [store.read(each)["attempts"] for each in runs] == [1, 2, 2]
    assert [epoch for each, epoch in told.epochs if each == runs[0]] == [1, 2]
    assert list((store.folder / "slurm").glob("*_submitted.pkl"))


def test_a_store_that_cannot_be_written_stops_the_study(place):
    store = Store("unwritable")
    (store.directory(run()) / "state.pt").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"state\.pt must be writable, got: Is a directory"):
        carried_out([run()], store, Slurm(store.folder, {"cluster": "debug"}))


def test_a_job_that_must_make_room_is_queued_again_as_it_is(place):
    task = Task(run(), place)
    again = task.checkpoint()
    assert isinstance(again, submitit.helpers.DelayedSubmission)
    assert again.function is task


def test_what_is_under_way_is_stopped_with_the_study_and_goes_on_with_the_next(place):
    store = Store("stopped")
    long = Run(Choice("dctps"), Choice("fragile:build"), Choice("digits"), density=0.5, train=Training(epochs=500))
    with Slurm(store.folder, LOCAL) as launcher:
        launcher.submit([long])
        deadline = time.monotonic() + 60
        while not store.progress(long) and time.monotonic() < deadline:
            time.sleep(0.05)
        done = len(store.progress(long))
    for _ in range(100):
        with store.held(long) as mine:
            if mine:
                break
        time.sleep(0.05)
    assert 0 < done <= len(store.progress(long)) < 500
    assert store.read(long) is None
    assert store.read_state(long)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "launcher slurm must run where jobs are submitted, got a machine without sbatch"),
        ({"cluster": "lokal"}, "cluster must be slurm, local or debug, got 'lokal'"),
        (
            {**LOCAL, "timeout_minute": 3},
            r"options of slurm must be submitit's, .*, got 'timeout_minute'; did you mean 'timeout_min'\?",
        ),
    ],
)
def test_an_option_that_slurm_does_not_have_is_named(options, message, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=message):
        Slurm(tmp_path, options)
