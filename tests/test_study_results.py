"""Tables and picture say what the records say, to the figure."""

import itertools
import math

import pandas as pd
import pytest
from rich.console import Console

from subspace.study.config import Run, Training
from subspace.study.methods import BASIC, METHODS
from subspace.study.plots import accuracy_against_density, name_lines
from subspace.study.progress import duration
from subspace.study.tables import COSTS, printed, printed_costs, runs_table, summary_table
from subspace.study.worker import outcome

SIZES = {"weights": 1000, "alpha": 0, "beside": {}, "trained_bytes": 40, "stored_bytes": 1234, "learning_rate": 0.1}

COST = {"flops_init": 3e6, "flops_training": 45_678.9, "flops_final": 1234.5, "flops_total": 2e9}
COST |= {"flops_dense": 7000, "stored_init": 90_000, "stored_training": 80_000, "stored_bytes": 70_000}


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


def test_the_change_is_against_the_dense_network_of_the_same_seed():
    table = summary_table(runs_table(RECORDS))
    assert list(table["change"]) == pytest.approx([0.0, 0.8 - 0.95, (0.5 - 0.95 + 0.7 - 0.97) / 2])
    assert table["change_std"][0] == 0
    assert table["change_std"][2] == pytest.approx((0.7 - 0.97 - (0.5 - 0.95)) / math.sqrt(2))
    assert summary_table(runs_table(RECORDS[:4]))["change"].isna().all()


def test_the_costs_are_means_over_seeds_and_printed_in_their_units():
    first, second = (kept("force", 0.1, seed, 0.5, 100, **COST) for seed in (0, 1))
    second["metrics"]["flops_training"] = 45_678.9 + 2000
    table = summary_table(runs_table([first, second, *RECORDS[4:6]]))
    force = table.iloc[1]
    assert [force[name] for name in COSTS] == [3e6, 46_678.9, 1234.5, 2e9, 7000, 90_000, 80_000]
    console = Console(width=100)
    with console.capture() as capture:
        console.print(printed_costs(table))
    lines = [line.split() for line in capture.get().splitlines()]
    figures = ["3.00", "46.7", "1.23", "2.00", "7.00", "90.0", "80.0", "70.0"]
    assert ["FORCE", "0.1", "-46.0", "±", "1.4", *figures] in lines
    assert ["ordinary", "(dense)", "dense", "+0.0", "±", "0.0", *["-"] * 7, "1.23"] in lines


@pytest.mark.parametrize("table", [printed, printed_costs])
def test_every_label_and_the_widest_figures_fit_into_the_page(table):
    wide = {"flops_init": 99_999e6, "flops_training": 99_999e3, "flops_final": 9_999e3, "flops_total": 9_999e9}
    wide |= {"flops_dense": 99_999e3, "stored_init": 999e3, "stored_training": 999e3, "stored_bytes": 999e3}
    rows = [
        kept(name, 0.001, seed, 0.1 * seed, 61, **wide) for name in METHODS if name != "ordinary" for seed in (0, 9)
    ]
    rows += [kept("ordinary", None, seed, 0.9, 61_210, **wide) for seed in (0, 9)]
    console = Console(width={printed: 80, printed_costs: 100}[table])
    with console.capture() as capture:
        console.print(table(summary_table(runs_table(rows))))
    assert "…" not in capture.get()
    assert all(f"{method.label} " in capture.get() for method in METHODS.values())


def test_the_options_of_a_method_are_in_its_row():
    assert runs_table([kept("rigl", 0.1, 0, 0.5, 9)])["options"][0] == "delta_t=8 fraction=0.3 t_end=0.75"
    assert runs_table(RECORDS)["options"][0] == ""


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


def test_many_methods_are_drawn_in_a_panel_for_each_family_with_the_others_in_grey():
    rows = [kept(name, density, 0, density, 61) for name in METHODS if name != "ordinary" for density in (0.1, 0.2)]
    table = summary_table(runs_table([*rows, *RECORDS[4:]]))
    figure = accuracy_against_density(table, "a title")
    families = list(dict.fromkeys(method.family for method in METHODS.values()))[1:]
    assert [axes.get_title(loc="left") for axes in figure.axes] == families
    for axes, family in zip(figure.axes, families, strict=True):
        own = {method.label for method in METHODS.values() if method.family == family}
        assert {text.get_text() for text in axes.texts} == {"chance", "ordinary (dense)", *own}
        curves = [line for line in axes.lines if len(line.get_xdata()) == 2 and min(line.get_xdata()) == 0.1]
        assert len(curves) == len(METHODS) - 1
        assert sum(line.get_color() != "#D8D8D8" for line in curves) == len(own)
    basic = table[table["method"].isin(BASIC)]
    assert len(accuracy_against_density(basic, "a title").axes) == 1


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
