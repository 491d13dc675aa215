"""Trackers get every point once, whatever is interrupted and resumed, and every run apart from the others."""

import json
import sqlite3
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from subspace.study.execution.trackers import CURVES, TensorBoard, Tracker, find_tracker
from tests.study.execution.tracked import RUNS, figures, record, study


class StandIn:
    """A module with W&B's interface, that keeps what it is told."""

    def __init__(self):
        self.runs = []

    def init(self, project=None, name=None, group=None, config=None, dir=None, reinit=None, settings=None):
        self.runs.append(tracked := Tracked())
        tracked.options = {"project": project, "name": name, "group": group, "config": config, "dir": dir}
        tracked.reinit = reinit
        return tracked


class Tracked:
    def __init__(self):
        self.points, self.exit_code = [], None

    def log(self, data, step=None):
        assert self.exit_code is None
        self.points.append((step, data))

    def finish(self, exit_code=None):
        assert self.exit_code is None
        self.exit_code = exit_code


def curve(tracked, name):
    return [(step, data[name]) for step, data in tracked.points if name in data]


def test_every_run_is_one_tracked_run_with_its_own_points(tmp_path):
    module = StandIn()
    study(Tracker(module, "digits", tmp_path / "out"))
    assert len(module.runs) == 2
    for run, tracked in zip(RUNS, module.runs, strict=True):
        assert curve(tracked, "train_loss") == [(epoch, 1 / epoch + run.seed) for epoch in (1, 2, 3)]
        assert tracked.options["name"] == str(run)
        assert tracked.options["config"] == {**run.configuration(), "hash": run.hash}
        assert json.dumps(tracked.options["config"])
        assert (tracked.options["project"], tracked.reinit) == ("digits", "create_new")
        assert tracked.options["dir"] == str(tmp_path / "out")
        assert tracked.exit_code == 0
    assert module.runs[0].options["group"] == module.runs[1].options["group"]


def test_what_is_not_known_is_no_point_and_the_last_point_has_the_costs():
    module = StandIn()
    study(Tracker(module, "digits"))
    for _, data in module.runs[0].points[:-1]:
        assert set(data) == set(CURVES) - {"validation_accuracy"}
    step, last = module.runs[0].points[-1]
    assert step == 3
    assert last == {
        "final/weights": 61_210,
        "final/dim": 617,
        "final/beside_bias": 10,
        "final/learning_rate": 0.03,
        "final/flops_total": 1.5e9,
        "final/file_bytes": 4_000,
        "final/test_accuracy": pytest.approx(0.3),
    }


def test_a_failed_run_is_a_failed_tracked_run_with_its_error():
    module = StandIn()
    study(Tracker(module, "digits"), last=1, error="FloatingPointError: the loss must be finite")
    assert [tracked.exit_code for tracked in module.runs] == [1, 1]
    assert module.runs[0].points[-1] == (1, {"error": "FloatingPointError: the loss must be finite"})


def test_an_interrupted_study_and_its_resumption_leave_every_curve_whole_and_single():
    module = StandIn()
    study(Tracker(module, "digits"), last=2, end=False)
    assert [tracked.exit_code for tracked in module.runs] == [1, 1]
    study(Tracker(module, "digits"))  # tells of all epochs again, as `study.runner` does
    assert [len(curve(tracked, "train_loss")) for tracked in module.runs] == [2, 2, 3, 3]


def test_a_run_that_is_tried_again_is_tracked_anew():
    module = StandIn()
    tracker = Tracker(module, "digits")
    tracker.begin(RUNS[0])
    tracker.epoch(RUNS[0], figures(RUNS[0], 1))
    tracker.begin(RUNS[0])
    tracker.epoch(RUNS[0], figures(RUNS[0], 1))
    tracker.end(RUNS[0], record(RUNS[0]))
    assert [tracked.exit_code for tracked in module.runs] == [1, 0]
    assert [len(tracked.points) for tracked in module.runs] == [1, 2]


def test_runs_that_only_wait_in_a_queue_open_nothing(tmp_path):
    module = StandIn()
    for callback in (Tracker(module, "digits"), Tracker(TensorBoard(tmp_path / "events"), "digits")):
        for run in RUNS:
            callback.begin(run)
        callback.close()
    assert module.runs == []
    assert not (tmp_path / "events").exists()


@pytest.mark.parametrize("name", ["tensorbord", "mlflow"])
def test_an_unknown_tracker_is_named_with_the_nearest(name, tmp_path):
    with pytest.raises(ValueError, match="tracker must be one of tensorboard, wandb, trackio, got") as error:
        find_tracker(name, tmp_path)
    assert ("did you mean 'tensorboard'?" in str(error.value)) == (name == "tensorbord")


@pytest.mark.parametrize("name", ["wandb", "trackio", "tensorboard"])
def test_a_library_that_is_not_there_is_named_with_the_command(name, tmp_path, monkeypatch):
    module = "torch.utils.tensorboard" if name == "tensorboard" else name
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=f"^{name} must be installed to track with it, got none: pip install {name}$"):
        find_tracker(name, tmp_path)
    monkeypatch.setitem(sys.modules, module, types.ModuleType(name))  # as a folder of that name is
    with pytest.raises(ValueError, match=f"pip install {name}"):
        find_tracker(name, tmp_path)


def has(file, names):
    content = file.read_bytes()
    return all(name.encode() in content for name in names) and content.count(b"train_loss") >= 3


def within(seconds, condition):
    """Whether it comes to be so: wandb's own process may write a little later."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def test_wandb_itself_takes_all_runs_offline(tmp_path, monkeypatch, capfd):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    study(find_tracker("wandb", tmp_path / "digits"))
    files = sorted((tmp_path / "digits" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    for run in RUNS:
        names = ["train_loss", "test_accuracy", "final/flops_total", str(run), run.hash]
        assert within(10, lambda names=names: any(has(file, names) for file in files)), run
    assert capfd.readouterr().out == ""


def test_trackio_itself_takes_all_runs(tmp_path):
    pytest.importorskip("trackio")
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[3])!r})
from tests.study.execution.test_trackers import find_tracker, study
for last, end in ((2, False), (3, True)):
    study(find_tracker("trackio", {str(tmp_path / "digits")!r}), last=last, end=end)
"""
    environment = {"TRACKIO_DIR": str(tmp_path / "trackio"), "PATH": "", "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "compatibility" not in done.stderr
    with sqlite3.connect(tmp_path / "trackio" / "digits.db") as database:
        rows = database.execute("select run_id, run_name, step, metrics from metrics order by id").fetchall()
    curves = {}
    for run_id, name, step, metrics in rows:
        if "train_loss" in (point := json.loads(metrics)):
            curves.setdefault((run_id, name), []).append((step, point["train_loss"]))
    expected = [[(epoch, 1 / epoch + run.seed) for epoch in range(1, last + 1)] for last in (2, 3) for run in RUNS]
    assert sorted(curves.values()) == sorted(expected)
    assert {name for _, name in curves} == set(map(str, RUNS))
