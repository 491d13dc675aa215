"""TensorBoard's own reader finds every point once, whatever is interrupted and resumed."""

import pytest

from subspace.study.entries.entry import Choice
from subspace.study.execution.trackers import TensorBoard, Tracker
from subspace.study.spec.study import Run, Training
from tests.study.execution.tracked import RUNS, figures, record, study


def events(folder, run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(TensorBoard(folder).path(str(run), run.hash)))
    accumulator.Reload()
    return accumulator


def tracker(folder):
    return Tracker(TensorBoard(folder), "digits")


def scalars(accumulator, name):
    return [(event.step, pytest.approx(event.value)) for event in accumulator.Scalars(name)]


@pytest.fixture
def tensorboard():
    return pytest.importorskip("tensorboard")


def test_tensorboard_reads_every_point_once_in_a_folder_for_every_run(tmp_path, tensorboard):
    study(tracker(tmp_path))
    assert len(list(tmp_path.iterdir())) == 2
    for run in RUNS:
        read = events(tmp_path, run)
        assert scalars(read, "train_loss") == [(epoch, 1 / epoch + run.seed) for epoch in (1, 2, 3)]
        assert scalars(read, "final/flops_total") == [(3, 1.5e9)]
        assert "validation_accuracy" not in read.Tags()["scalars"]
        assert len(list(TensorBoard(tmp_path).path(str(run), run.hash).iterdir())) == 1


def test_tensorboard_forgets_what_an_interrupted_study_left(tmp_path, tensorboard):
    study(tracker(tmp_path), last=2, end=False)
    study(tracker(tmp_path))
    study(tracker(tmp_path), first=3)  # should an epoch not be told of again, it is missing, never double
    assert scalars(events(tmp_path, RUNS[0]), "train_loss") == [(3, 1 / 3)]
    study(tracker(tmp_path))
    assert scalars(events(tmp_path, RUNS[1]), "train_loss") == [(epoch, 1 / epoch + 1) for epoch in (1, 2, 3)]


def test_tensorboard_has_the_configuration_as_hyperparameters(tmp_path, tensorboard):
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    run = Run(Choice("rigl", {"delta_t": 4}), dim=300, train=Training(optimizer={"name": "SGD", "momentum": 0.9}))
    callback = tracker(tmp_path)
    callback.epoch(run, figures(run, 1))
    callback.end(run, record(run))
    content = events(tmp_path, run).SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    known = HParamsPluginData.FromString(content).session_start_info.hparams
    assert known["method"].string_value == str(Choice(**run.configuration()["method"]))
    assert known["dim"].number_value == 300
    assert known["optimizer"].string_value == "SGD, momentum=0.9"
    assert known["hash"].string_value == run.hash
    assert "density" not in known


def test_tensorboard_has_the_error_of_a_failed_run(tmp_path, tensorboard):
    study(tracker(tmp_path), last=1, error="ValueError: no such layer")
    read = events(tmp_path, RUNS[0])
    assert read.Tensors("error/text_summary")[0].tensor_proto.string_val == [b"ValueError: no such layer"]


def test_paths_of_different_runs_differ_and_are_plain(tmp_path):
    board = TensorBoard(tmp_path)
    runs = [*RUNS, Run(Choice("dctps"), dim=3), Run(Choice("ordinary"), Choice("a/b:c", {"x": "../.."}))]
    assert len({board.path(str(run), run.hash) for run in runs}) == 4
    assert all(board.path(str(run), run.hash).parent == tmp_path for run in runs)
