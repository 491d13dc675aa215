"""Laws of the runner: each run once, whatever fails or is killed on the way."""

import errno
import io
import json
import multiprocessing
import os
import signal
import threading
import time
import warnings

import pytest
import torch
from rich.console import Console

from subspace.study.cli.status import describe
from subspace.study.entries.entry import Choice
from subspace.study.execution.callbacks import Callback
from subspace.study.execution.execute import RunStateStore, execute, make_record
from subspace.study.execution.launchers.inline import Inline
from subspace.study.execution.launchers.pool import Pool
from subspace.study.execution.live import LiveProgress
from subspace.study.execution.progress import Lines
from subspace.study.execution.runner import carry_out, unfinished
from subspace.study.results.disk import StorageError
from subspace.study.results.store import NewerSchemaError, Store
from subspace.study.spec.study import Run, Study, Training
from subspace.study.training.state import pack
from tests.support.processes import QUICK

METRICS = {"epochs": [{"test_accuracy": 0.25}, {"test_accuracy": 0.5}], "seconds": 1.0}


def task(run, states):
    """In place of training: writes down that it began, then does what its seed says."""
    with (states.store.folder / "log").open("a") as log:
        log.write(f"{run.seed}\n")
    before = states.load()
    if run.seed == 13:
        raise RuntimeError("seed 13 has no luck")
    if run.seed == 9 and not before:
        states.save({"done": [{"epoch": 1}]})
        os.kill(os.getpid(), signal.SIGKILL)
    if run.seed == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    if run.seed == 7:
        raise MemoryError("no more")
    if run.seed == 5:
        warnings.warn("seed 5 is odd", stacklevel=1)
    if run.seed == 4:
        raise StorageError("the disk is full")
    for epoch in range(run.train.epochs):
        time.sleep(0.02 if run.seed < 100 else 60)
        states.save({"done": [{"epoch": done + 1} for done in range(epoch + 1)]})
    alone = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    return {**METRICS, "threads": torch.get_num_threads(), "alone": alone, "resumed": bool(before)}


def grid(*seeds):
    return [Run(Choice("ordinary"), seed=seed, train=Training(epochs=2)) for seed in seeds]


def pool(store, workers):
    """Workers that need not import torch again."""
    return Pool(store.folder, workers, task, "forkserver")


def train(runs, store, launcher, callback):
    carry_out(runs, store, launcher, callback, elsewhere=0.1)


@pytest.fixture
def children():
    """The processes of other tests."""
    return set(multiprocessing.active_children())


@pytest.fixture
def store(tmp_path):
    found = Store(tmp_path / "results")
    found.require_writable()
    return found


def begun(store):
    log = store.folder / "log"
    return sorted(map(int, log.read_text().split())) if log.exists() else []


def in_memory(**options):
    return Console(file=io.StringIO(), width=100, **options)


class Told(Callback):
    """Writes down all it is told."""

    def __init__(self):
        self.begun, self.epochs, self.ended, self.said = [], [], [], []

    def begin(self, run):
        self.begun.append(run.seed)

    def epoch(self, run, figures):
        self.epochs.append((run.seed, figures["epoch"]))

    def end(self, run, record):
        self.ended.append((run.seed, record["status"]))

    def say(self, text):
        self.said.append(text)


@pytest.mark.slow
def test_failures_are_tried_once_more_recorded_and_shown_and_stop_nothing_else(store, children):
    runs = grid(0, 13, 9, 8, 7, 5, 1, 2)
    progress = Lines(in_memory())
    progress.expect(runs)
    train(runs, store, pool(store, 2), progress)
    read = {run.seed: store.read(run) for run in runs}
    assert {seed for seed, kept in read.items() if kept["status"] == "finished"} == {0, 5, 1, 2, 9}
    assert read[13]["error"] == "RuntimeError: seed 13 has no luck"
    assert "in task" in read[13]["traceback"]
    assert read[8]["error"] == "the worker process died: killed by SIGKILL"
    assert read[7]["error"] == "MemoryError: no more"
    assert read[13]["metrics"] is read[8]["metrics"] is None
    assert {seed: kept["attempts"] for seed, kept in read.items()} == {0: 1, 1: 1, 2: 1, 5: 1, 7: 2, 8: 2, 9: 2, 13: 2}
    assert read[0]["metrics"] == {**METRICS, "threads": 1, "alone": True, "resumed": False}
    assert read[9]["metrics"]["resumed"]
    assert {"subspace", "torch", "numpy", "python", "platform", "cpu", "threads"} <= read[0]["environment"].keys()
    assert read[5]["warnings"] == ["seed 5 is odd"]
    assert begun(store) == sorted([0, 1, 2, 5, 7, 7, 8, 8, 9, 9, 13, 13])
    assert set(multiprocessing.active_children()) == children
    shown = progress.console.file.getvalue()
    assert shown.count("FAILED") == 3
    assert "FAILED  ordinary (dense), seed 13: RuntimeError: seed 13 has no luck" in shown
    assert (
        "ordinary (dense), seed 9 failed, and is tried once more: the worker process died: killed by SIGKILL" in shown
    )
    assert "\x1b" not in shown
    ends = [line.split()[0] for line in shown.splitlines() if "/8" in line]
    assert ends == [f"{n}/8" for n in range(1, 9)]


def test_what_is_missing_damaged_or_failed_for_the_first_time_is_unfinished_and_the_rest_is_not(store):
    runs = grid(0, 1, 2, 3, 4)
    store.write(runs[0], make_record(METRICS, None))
    store.write(runs[1], make_record(None, "lost"))
    store.write(runs[2], make_record(METRICS, None))
    store.write(runs[4], make_record(None, "lost again", number=2))
    store.path(runs[2]).write_text("{")
    told = Told()
    assert unfinished(runs, store, told) == runs[1:4]
    assert store.path(runs[2]).with_name("damaged-1-result.json").read_text() == "{"
    (said,) = told.said
    assert f"{store.path(runs[2])} must be JSON" in said
    assert said.endswith("set aside as damaged-1-result.json, and run again")
    assert unfinished(runs, store, told, retry=True) == runs[1:]


def test_a_result_of_a_newer_version_stops_the_study_before_anything_runs(store):
    (run,) = grid(0)
    store.write(run, make_record(METRICS, None))
    store.path(run).write_text(json.dumps({"schema": 99, "environment": {"subspace": "9.9"}}))
    with pytest.raises(NewerSchemaError, match=r"got 99, which version 9\.9 wrote"):
        unfinished([run], store, Told())


def test_a_store_that_cannot_be_written_stops_the_study_and_is_no_failure_of_the_run(store, children):
    runs = grid(4, 100, 101)
    with pytest.raises(StorageError, match="the disk is full"):
        train(runs, store, pool(store, 2), Told())
    assert [store.read(run) for run in runs] == [None, None, None]
    assert set(multiprocessing.active_children()) == children


def test_a_real_disk_error_in_a_worker_stops_the_study_in_one_sentence(store):
    (run,) = grid(0)
    store.directory(run).parent.mkdir(parents=True)
    store.directory(run).write_text("in the way")
    with pytest.raises(StorageError, match="must be writable, got: (File exists|Not a directory)"):
        train([run], store, pool(store, 1), Told())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES])
def test_a_full_disk_is_no_failure_of_a_run_whichever_file_was_written(store, number):
    """A file of torch's or of one's own model, that is; any other trouble with one is the run's."""
    (run,) = grid(0)

    def task(run, states):
        raise OSError(number, "as the system says it", "/tmp/of-torch")

    if number == errno.EACCES:
        execute(run, store.folder, task)
        assert store.read(run)["error"].startswith("PermissionError")
    else:
        with pytest.raises(StorageError, match="a disk must have room, got: .*as the system says it: '/tmp/of-torch'"):
            execute(run, store.folder, task)
        assert store.read(run) is None


def test_every_epoch_is_told_once_and_in_order(store):
    told = Told()
    train(grid(0, 1), store, pool(store, 2), told)
    assert sorted(told.epochs) == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert sorted(told.begun) == [0, 1]
    assert sorted(told.ended) == [(0, "finished"), (1, "finished")]


def test_a_run_that_another_process_is_at_is_waited_for_and_its_result_taken(store):
    (run,) = grid(0)
    told = Told()
    with store.held(run) as mine:
        assert mine
        study = threading.Thread(target=train, args=([run], store, pool(store, 1), told))
        study.start()
        while not told.said:
            time.sleep(0.01)
        store.write(run, make_record(METRICS, None))
        time.sleep(0.3)
        assert not told.ended
    study.join(10)
    assert told.said == ["ordinary (dense), seed 0: another process trains it, and its result will be used"]
    assert told.ended == [(0, "finished")]
    assert begun(store) == []


def test_a_run_whose_other_process_dies_is_taken_over(store):
    (run,) = grid(0)
    told = Told()
    with store.held(run):
        study = threading.Thread(target=train, args=([run], store, pool(store, 1), told))
        study.start()
        while not told.said:
            time.sleep(0.01)
    study.join(10)
    assert told.ended == [(0, "finished")]
    assert begun(store) == [0]


@pytest.mark.slow
def test_two_studies_at_once_train_each_run_once(store):
    runs = grid(*range(20, 30))
    studies = [QUICK.Process(target=train, args=(runs, store, pool(store, 2), Callback())) for _ in range(2)]
    for study in studies:
        study.start()
    for study in studies:
        study.join(30)
    assert [study.exitcode for study in studies] == [0, 0]
    assert begun(store) == list(range(20, 30))


def test_a_damaged_state_is_set_aside_with_a_warning_and_the_run_begins_anew(store):
    (run,) = grid(0)
    store.write_state(run, pack({"done": [{"epoch": 1}]}), [{"epoch": 1}])
    path = store.directory(run) / "state.pt"
    path.write_bytes(path.read_bytes()[:-3])
    assert execute(run, store.folder, task) == "ended"
    record = store.read(run)
    assert not record["metrics"]["resumed"]
    (warning,) = record["warnings"]
    assert warning.endswith("set aside as damaged-1-state.pt, and the run begins anew")
    assert path.with_name("damaged-1-state.pt").exists()


def test_a_state_can_hold_no_code(store):
    (run,) = grid(0)
    store.write_state(run, pack({"done": [], "harm": os.system}), [])
    with pytest.warns(UserWarning, match=r"must be readable, got: Weights only load failed.*damaged-1-state\.pt"):
        assert RunStateStore(store, run).load() is None
    assert (store.directory(run) / "damaged-1-state.pt").exists()


def test_how_a_run_stands_is_said(store):
    _, finished, failed, interrupted, damaged, under_way = runs = grid(0, 1, 2, 3, 4, 5)
    store.write(finished, make_record(METRICS, None))
    store.write(failed, make_record(None, "no luck", number=2))
    store.write_state(interrupted, b"", [{"epoch": 1}])
    store.write(damaged, make_record(METRICS, None))
    store.path(damaged).write_text("{")
    with store.held(under_way):
        stands = [describe(run, store) for run in runs]
    assert stands == [
        "missing",
        "finished, 50.0%",
        "failed 2 times: no luck",
        "interrupted after epoch 1 of 2",
        "damaged: will be set aside, and run again",
        "running, epoch 0 of 2",
    ]


def test_live_bars_end_full_and_only_failures_stay_above_them():
    runs = grid(0, 13)
    progress = LiveProgress(in_memory(force_terminal=True))
    progress.expect(runs)
    for run in runs:
        progress.begin(run)
    progress.epoch(runs[0], {"epoch": 1})
    assert progress.bars.tasks[0].completed == 1
    assert progress.bars.tasks[1].fields["count"] == "epoch 1/2"
    progress.begin(runs[1])  # tried once more
    progress.end(runs[1], make_record(None, "no luck"))
    assert progress.bars.tasks[0].completed == 3
    progress.end(runs[0], make_record(METRICS, None))
    total, *rest = progress.bars.tasks
    progress.close()
    assert (total.completed, total.total, total.fields["count"], rest) == (4, 4, "2/2 runs", [])
    shown = progress.console.file.getvalue()
    assert "FAILED  ordinary (dense), seed 13: no luck" in shown
    assert "50.0%" not in shown
    assert "\x1b" in shown


def test_live_bars_count_the_rounds_of_imp():
    run = Run(Choice("imp"), density=0.1)
    progress = LiveProgress(in_memory(force_terminal=True))
    progress.expect([run])
    progress.begin(run)
    progress.epoch(run, {"epoch": 10})
    assert (progress.bars.tasks[1].fields["count"], progress.bars.tasks[1].total) == ("epoch 10/40", 40)
    assert progress.bars.tasks[0].completed == pytest.approx(run.cost / 4)
    progress.close()


def test_the_longest_runs_begin_first_and_can_be_done_in_this_process(store):
    told, runs = Told(), [*grid(0, 1), Run(Choice("imp"), density=0.1, seed=2, train=Training(epochs=2))]
    train(runs, store, Inline(store.folder, task), told)
    assert told.begun == [2, 0, 1]
    assert sorted(Study(seeds=1).runs(), key=lambda run: -run.cost)[0].method.name == "random_subspace"


def test_a_pool_has_at_least_one_worker(store):
    with pytest.raises(ValueError, match="workers must be an integer of at least 1, got 0"):
        Pool(store.folder, 0)
