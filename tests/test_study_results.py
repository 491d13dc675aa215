"""Tables and picture say what the records say, to the figure."""

import itertools
import math

import pandas as pd
import pytest
from rich.console import Console

from subspace.study.config import Run, Training
from subspace.study.plots import accuracy_against_density, name_lines
from subspace.study.progress import duration
from subspace.study.tables import printed, runs_table, summary_table
from subspace.study.worker import outcome

SIZES = {"weights": 1000, "alpha": 0, "beside": {}, "trained_bytes": 40, "stored_bytes": 1234, "learning_rate": 0.1}


def kept(method, density, seed, accuracy, dim, **sizes):
    run = Run(method, density, seed, training=Training(2, 3, 0.5))
    curves = {"test_accuracy": [0.9, accuracy], "train_loss": [2.0, 1.0], "seconds": 5.0}
    metrics = None if accuracy is None else {**SIZES, "dim": dim, **curves, **sizes}
    return {"configuration": run.configuration(), **outcome(metrics, None if metrics else "no luck")}


RECORDS = [
    kept("dctps", 0.01, 0, 0.5, 12, alpha=2, beside={"bias": 3, "norm": 4}),
    kept("dctps", 0.01, 1, 0.7, 12, alpha=2, beside={"bias": 3, "norm": 4}),
    kept("dctps", 0.01, 2, None, 12),
    kept("dctps", 0.1, 0, 0.8, 102, alpha=2),
    kept("ordinary", None, 0, 0.95, 1000),
    kept("ordinary", None, 1, 0.97, 1000),
    kept("ordinary", None, 2, 0.96, 1000),
]


def test_there_is_one_row_per_run_with_its_configuration_and_last_epoch():
    table = runs_table(RECORDS)
    assert len(table) == 7
    first = table.iloc[0]
    assert (first["method"], first["density"], first["seed"], first["epochs"], first["batch"]) == (
        "dctps",
        0.01,
        0,
        2,
        3,
    )
    assert (first["test_accuracy"], first["train_loss"], first["seconds"]) == (0.5, 1.0, 5.0)
    assert (first["theta"], first["alpha"], first["bias"], first["norm"], first["other"]) == (10, 2, 3, 4, 0)
    failed = table.iloc[2]
    assert (failed["status"], failed["error"]) == ("failed", "no luck")
    assert math.isnan(failed["test_accuracy"])


def test_mean_spread_and_sizes_equal_those_computed_by_hand():
    table = summary_table(runs_table(RECORDS))
    assert list(table["method"]) == ["ordinary", "dctps", "dctps"]
    assert list(table["seeds"]) == [3, 1, 2]
    assert list(table["mean"]) == pytest.approx([0.96, 0.8, 0.6])
    assert list(table["min"]) == [0.95, 0.8, 0.5]
    assert list(table["max"]) == [0.97, 0.8, 0.7]
    assert table["std"][0] == pytest.approx(0.01)
    assert math.isnan(table["std"][1])
    assert table["std"][2] == pytest.approx(0.1 * math.sqrt(2))
    assert math.isnan(table["density"][0])
    assert list(table["density"][1:]) == [0.1, 0.01]
    assert list(table["theta"]) == [1000, 100, 10]
    assert list(table["stored_bytes"]) == [1234] * 3


def test_the_printed_table_is_those_figures_in_80_characters():
    console = Console(width=80)
    with console.capture() as capture:
        console.print(printed(summary_table(runs_table(RECORDS))))
    lines = [line.split() for line in capture.get().splitlines()]
    assert ["ordinary", "(dense)", "dense", "96.0", "±", "1.0", "3", "1,000", "-", "1.2"] in lines
    assert ["DCTpS,", "EPL", "0.1", "80.0", "1", "100", "2", "alpha", "1.2"] in lines
    first = next(line for line in lines if line[:5] == ["0.01", "60.0", "±", "14.1", "2"])
    assert first[5:8] == ["10", "2", "alpha,"]


def test_a_study_whose_every_run_failed_has_an_empty_table():
    assert len(summary_table(runs_table([RECORDS[2]]))) == 0


def test_the_table_survives_csv(tmp_path):
    table = summary_table(runs_table(RECORDS))
    table.to_csv(tmp_path / "table.csv", index=False)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "table.csv"), table, check_dtype=False)


def test_the_picture_shows_every_mean_and_band_in_per_cent(tmp_path):
    figure = accuracy_against_density(summary_table(runs_table(RECORDS)), "a title")
    axes = figure.axes[0]
    drawn = {tuple(line.get_ydata()) for line in axes.lines}
    assert (10.0, 10.0) in drawn  # chance
    assert (96.0, 96.0) in {tuple(round(y, 9) for y in line) for line in drawn}  # dense
    (curve,) = [line for line in axes.lines if list(line.get_xdata()) == [0.01, 0.1]]
    assert list(curve.get_ydata()) == pytest.approx([60.0, 80.0])
    (band,) = axes.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((50.0, 80.0))
    assert axes.get_xscale() == "log"
    assert axes.xaxis_inverted()
    assert {text.get_text() for text in axes.texts} == {"chance", "ordinary (dense)", "DCTpS, EPL"}
    figure.savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_names_of_lines_never_touch():
    axes = accuracy_against_density(summary_table(runs_table(RECORDS)), "a title").axes[0]
    before = len(axes.texts)
    name_lines(axes, [(10.0, "red", "a"), (10.0, "blue", "b"), (11.0, "green", "c"), (90.0, "black", "d")], gap=5)
    heights = [text.get_position()[1] for text in axes.texts[before:]]
    assert all(upper - lower >= 5 for lower, upper in itertools.pairwise(heights))
    assert heights == [10.0, 15.0, 20.0, 90.0]


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (3725, "62 min 5 s")])
def test_durations_are_in_minutes_and_seconds(seconds, words):
    assert duration(seconds) == words
