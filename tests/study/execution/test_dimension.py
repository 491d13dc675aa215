"""The intrinsic dimension of a tiny study: its tables and figure, what is trained again, and what is refused."""

import math
import os

import pandas as pd
import pytest
from typer.testing import CliRunner

from subspace import study
from subspace.study.cli.app import app
from subspace.study.entries.entry import Choice
from subspace.study.execution.callbacks import Callback
from subspace.study.execution.dimension import Lost, Watch
from subspace.study.spec.study import Run, Training

TINY = {
    "name": "tiny",
    "methods": ["ordinary", "random_subspace", {"name": "random_subspace", "embedding": "hashed", "offset": "initial"}],
    "dims": [5, 1000],
    "seeds": 2,
    "models": [{"name": "mlp", "hidden": [16]}],
    "data": ["digits"],
    "train": {"epochs": 3},
}


class Watched(Callback):
    """Notes what ends, and what is said."""

    def __init__(self):
        self.ended, self.said = [], []

    def end(self, run, record):
        self.ended.append(run)

    def say(self, text):
        self.said.append(text)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out, watched = tmp_path_factory.mktemp("dimension"), Watched()
    return out, watched, study.dimension(TINY, 0.7, out, "inline", callbacks=[watched])


@pytest.mark.slow
def test_a_tiny_study_has_a_table_a_figure_and_a_sentence_for_each_method(found):
    out, watched, table = found
    assert table["label"].tolist() == ["random subspace", "random subspace, embedding=hashed, offset=initial"]
    assert (table["note"] == "").all()
    assert ((table["dim"] >= 5) & (table["dim"] <= 1000)).all()
    assert ((table["low"] <= table["dim"]) & (table["dim"] <= table["high"])).all()
    runs = pd.read_csv(out / "tiny" / "dimension-runs.csv")
    assert len(runs) == table["trainings"].sum()
    assert ((runs["performance"] >= 0.7) == runs["reached"]).all()
    ordinary = (runs["accuracy"] / runs["performance"]).groupby(runs["seed"]).agg(["min", "max"])
    assert ordinary["min"].to_list() == pytest.approx(ordinary["max"].to_list())
    assert pd.read_csv(out / "tiny" / "dimension.csv")["dim"].to_list() == pytest.approx(table["dim"].to_list())
    for kind in ("png", "svg"):
        assert (out / "tiny" / f"dimension-1.{kind}").stat().st_size > 1000
    assert sum("reaches 70 % of ordinary training's" in text for text in watched.said) == 2


@pytest.mark.slow
def test_again_trains_nothing_and_a_run_that_is_gone_alone_is_trained_again(found):
    out, _, table = found
    again = Watched()
    pd.testing.assert_frame_equal(study.dimension(TINY, 0.7, out, "inline", callbacks=[again]), table)
    assert not again.ended
    gone = next(path for path in sorted((out / "runs").iterdir()) if (path / "result.json").exists())
    os.remove(gone / "result.json")
    pd.testing.assert_frame_equal(study.dimension(TINY, 0.7, out, "inline", callbacks=[again]), table)
    assert [run.hash for run in again.ended] == [gone.name]


@pytest.mark.slow
def test_what_no_dim_reaches_or_every_dim_does_is_one_sentence_in_the_table(found):
    out, *_ = found
    never = study.dimension({**TINY, "dims": [5, 6], "methods": "random_subspace"}, 0.9, out, "inline")
    assert math.isnan(never["dim"][0])
    told = "dims must reach 90 % of ordinary training's accuracy, got none up to 6 that does at seed 0"
    assert never["note"].tolist() == [told]
    always = study.dimension({**TINY, "dims": [999, 1000], "methods": "random_subspace"}, 0.1, out, "inline")
    assert "dims must begin below 10 % of ordinary training's accuracy, got 999 that" in always["note"][0]


@pytest.mark.slow
def test_a_failed_run_is_told_and_the_other_methods_go_on(tmp_path):
    methods = [{"name": "random_subspace", "offset": "zero"}, {"name": "random_subspace", "embedding": "hashed"}]
    table = study.dimension({**TINY, "methods": methods, "seeds": 1}, 0.7, tmp_path, "inline")
    assert "every run must end well, got ValueError: offset must not be zero" in table["note"][0]
    assert table["note"][1] == ""
    assert math.isnan(table["low"][1])  # of one seed


@pytest.mark.parametrize(
    ("change", "target", "told"),
    [
        ({}, 1.2, r"target must be in \(0, 1\], the share of ordinary training's accuracy, got 1.2"),
        ({}, 0.0, r"target must be in \(0, 1\], .*, got 0.0"),
        (
            {"dims": [5, 10**6]},
            0.9,
            r"dims must be at most the number of weights of mlp, hidden=\[16\], .*, got 1,000,000",
        ),
        ({"methods": "said", "dims": [2, 9]}, 0.9, r"dims must be at least 5 for said of mlp, .*, got 2"),
        ({"methods": "ordinary"}, 0.9, "methods must have one with a dim, such as random_subspace, got none"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_trained(change, target, told, tmp_path):
    with pytest.raises(ValueError, match=f"^{told}$"):
        study.dimension({**TINY, **change}, target, tmp_path, "inline")
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_the_command_prints_a_sentence_and_says_where_its_files_are(found, tmp_path):
    out, *_ = found
    file = tmp_path / "tiny.json"
    file.write_text(pd.io.json.ujson_dumps(TINY))
    words = ["dimension", str(file), "--target", "0.7", "--out", str(out), "--launcher", "inline"]
    told = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    assert told.exit_code == 0, told.output
    assert "random subspace of mlp, hidden=[16] on digits: dim " in told.output
    assert "dimension-1.png" in told.output
    refused = CliRunner().invoke(app, [*words[:2], "--target", "2"], env={"COLUMNS": "200"})
    assert refused.exit_code == 2


def test_runs_are_stopped_once_none_of_those_being_trained_will_come_to_its_line():
    train = Training(epochs=4)
    bad, good = (Run(Choice("random_subspace"), dim=9, seed=seed, train=train) for seed in (0, 1))
    watch = Watch(Callback(), {bad: 0.9, good: 0.9})
    watch.expect([bad, good])
    for run in (bad, good):
        watch.begin(run)
    for value in (0.1, 0.1):
        watch.epoch(bad, {"test_accuracy": value, "seconds": 60.0})
    watch.epoch(good, {"test_accuracy": 0.5, "seconds": 60.0})
    with pytest.raises(Lost):
        watch.end(good, {})
    assert watch.seen[bad] == [0.1, 0.1]
    watch.left[bad] = 1.0  # too little to be worth new processes
    watch.require_hope()
    scheduled = Run(
        Choice("random_subspace"), dim=9, train=Training(epochs=4, schedule={"name": "StepLR", "step_size": 1})
    )
    watch = Watch(Callback(), {scheduled: 0.9}, {scheduled: [0.1, 0.1]})
    assert not watch.is_lost(scheduled)
