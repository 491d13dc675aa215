"""Laws of the runner: each run once, whatever fails or is killed on the way."""

import io
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from subspace.study.config import Run, Study, Training
from subspace.study.live import LiveProgress
from subspace.study.progress import Progress
from subspace.study.runner import carry_out, unfinished
from subspace.study.store import Store
from subspace.study.worker import outcome

METRICS = {"test_accuracy": [0.25, 0.5], "seconds": 1.0}
LOG = "SUBSPACE_TEST_LOG"


def task(run, report):
    """In place of training: writes down that it began, then does what its seed says."""
    with open(os.environ[LOG], "a") as log:
        log.write(f"{run.seed}\n")
    if run.seed == 13:
        raise RuntimeError("seed 13 has no luck")
    if run.seed == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    if run.seed == 5:
        warnings.warn("seed 5 is odd", stacklevel=1)
    for epoch in range(run.training.epochs):
        time.sleep(0.02 if run.seed < 100 else 60)
        report(epoch + 1)
    alone = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    return {**METRICS, "threads": torch.get_num_threads(), "leaves Ctrl-C to the parent": alone}


def grid(*seeds):
    return [Run("ordinary", None, seed, training=Training(epochs=2)) for seed in seeds]


@pytest.fixture
def forked(monkeypatch):
    """Workers that need not import torch again: in a second, and safe here, where no task computes with it."""
    monkeypatch.setattr("subspace.study.worker.get_context", lambda method: multiprocessing.get_context("fork"))


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv(LOG, str(tmp_path / "log"))
    return Store(tmp_path / "results")


def begun():
    return sorted(map(int, Path(os.environ[LOG]).read_text().split()))


def in_memory(**options):
    return Console(file=io.StringIO(), width=100, **options)


def test_failures_are_recorded_and_shown_and_stop_nothing_else(store, forked):
    runs = grid(0, 13, 9, 5, 1, 2)
    progress = Progress(in_memory())
    progress.expect(runs)
    carry_out(runs, store, 2, progress, task)
    read = {run.seed: store.read(run) for run in runs}
    assert {seed for seed, kept in read.items() if kept["status"] == "finished"} == {0, 5, 1, 2}
    assert read[13]["error"] == "RuntimeError: seed 13 has no luck"
    assert "in task" in read[13]["traceback"]
    assert read[9]["error"] == "the worker process died: killed by SIGKILL"
    assert read[13]["metrics"] is read[9]["metrics"] is None
    assert read[0]["metrics"] == {**METRICS, "threads": 1, "leaves Ctrl-C to the parent": True}
    assert read[0]["environment"].keys() == {"subspace", "torch", "numpy", "python", "platform", "cpu", "threads"}
    assert read[5]["warnings"] == ["seed 5 is odd"]
    assert begun() == sorted(run.seed for run in runs)
    assert not multiprocessing.active_children()
    shown = progress.console.file.getvalue()
    assert shown.count("FAILED") == 2
    assert "FAILED  ordinary (dense), seed 13: RuntimeError: seed 13 has no luck" in shown
    assert "\x1b" not in shown
    assert [line.split()[0] for line in shown.splitlines()] == [f"{n}/6" for n in range(1, 7)]


def test_what_is_missing_failed_or_damaged_is_unfinished_and_the_rest_is_not(store):
    runs = grid(0, 1, 2, 3)
    store.write(runs[0], outcome(METRICS, None))
    store.write(runs[1], outcome(None, "lost"))
    store.write(runs[2], outcome(METRICS, None))
    store.path(runs[2]).write_text("{")
    progress = Progress(in_memory())
    assert unfinished(runs, store, progress) == runs[1:]
    assert store.path(runs[2]).with_name("result.damaged-1.json").read_text() == "{"
    shown = progress.console.file.getvalue()
    assert f"{store.path(runs[2])} must be JSON" in shown
    assert shown.endswith("set aside as result.damaged-1.json, and run again\n")
    assert shown.count("\n") == 1


def test_live_bars_end_full_and_only_failures_stay_above_them():
    runs = grid(0, 13)
    with LiveProgress(in_memory(force_terminal=True)) as progress:
        progress.expect(runs)
        for run in runs:
            progress.begin(run)
        progress.epoch(runs[0], 1)
        assert progress.bars.tasks[0].completed == 1
        assert progress.bars.tasks[1].fields["count"] == "epoch 1/2"
        progress.end(runs[1], outcome(None, "no luck"))
        assert progress.bars.tasks[0].completed == 3
        progress.end(runs[0], outcome(METRICS, None))
        total, *rest = progress.bars.tasks
    assert (total.completed, total.total, total.fields["count"], rest) == (4, 4, "2/2 runs", [])
    shown = progress.console.file.getvalue()
    assert "FAILED  ordinary (dense), seed 13: no luck" in shown
    assert "50.0%" not in shown
    assert "\x1b" in shown


STUDY = """
import sys
sys.path.insert(0, {tests!r})
from test_study_runner import *
if __name__ == "__main__":
    progress = Progress(Console())
    progress.expect(runs := grid(0, 1, 2, 100, 101))  # the last two would take minutes
    carry_out(runs, Store({folder!r}), 1, progress, task)
"""


def test_a_killed_study_leaves_whole_results_and_goes_on_from_them(store, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(STUDY.format(tests=str(Path(__file__).parent), folder=str(store.folder)))
    study = subprocess.Popen([sys.executable, script], stdout=subprocess.DEVNULL)
    while not all(store.path(run).exists() for run in grid(0, 1, 2)):
        time.sleep(0.02)
        assert study.poll() is None
    study.kill()
    assert study.wait(20) == -signal.SIGKILL
    assert unfinished(grid(0, 1, 2, 100, 101), store, Progress(in_memory())) == grid(100, 101)
    assert begun()[:3] == [0, 1, 2]


def test_live_bars_count_the_rounds_of_imp():
    run = Run("imp", 0.1, 0)
    with LiveProgress(in_memory(force_terminal=True)) as progress:
        progress.expect([run])
        progress.begin(run)
        progress.epoch(run, 10)
        assert (progress.bars.tasks[1].fields["count"], progress.bars.tasks[1].total) == ("epoch 10/40", 40)
        assert progress.bars.tasks[0].completed == pytest.approx(run.cost / 4)


class Instant:
    """In place of a worker process: every run is done as soon as it begins."""

    process = SimpleNamespace(is_alive=lambda: True)

    def __init__(self, task):
        self.pipe, self.end = multiprocessing.Pipe()

    def start(self, run):
        self.end.send(outcome(METRICS, None))

    def receive(self):
        return self.pipe.recv()

    def stop(self):
        self.pipe.close()


def test_the_longest_runs_begin_first(store, monkeypatch):
    monkeypatch.setattr("subspace.study.runner.Worker", Instant)
    started = []
    progress = Progress(in_memory())
    progress.begin = started.append
    runs = Study(seeds=1).runs()
    progress.expect(runs)
    carry_out(runs, store, 1, progress, task)
    assert [(run.method, run.density) for run in started[:2]] == [("random_subspace", 0.1), ("random_subspace", 0.01)]
    assert sorted(map(str, started)) == sorted(map(str, runs))
