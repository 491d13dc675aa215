"""When training is possible: the table from records whose figures are known, and its heat maps."""

import math

import numpy as np
import pytest

from subspace.study.entries.entry import Choice
from subspace.study.reports.analyses.trainability import heat_maps, trainability_table
from subspace.study.spec.study import Run
from tests.support.records import failure, finished


def record(name, density, depth, seed, accuracies, norm=False):
    model = Choice("mlp", {"hidden": [9] * (depth - 1)} | ({"norm": True} if norm else {}))
    run = Run(Choice(name), model, Choice("digits"), density=density, seed=seed)
    made = finished(run, tensors=[{"name": f"layers.{n}", "shape": [9, 9]} for n in range(depth)])
    made["metrics"]["epochs"] = [{"epoch": n, "train_accuracy": value} for n, value in enumerate(accuracies, 1)]
    return made


RECORDS = [
    record("dctps", 0.1, 2, 0, [0.2, 0.95, 0.5]),  # what it had, it had
    record("dctps", 0.1, 2, 1, [0.91, 0.95, 0.99]),
    record("dctps", 0.1, 4, 0, [0.2, 0.3, 0.9]),
    record("dctps", 0.1, 4, 1, [0.2, 0.3, 0.89]),
    record("dctps", 0.01, 2, 0, [0.1, 0.1, 0.1]),
    record("ordinary", None, 2, 0, [0.99, 0.99, 0.99]),
    record("dctps", 0.1, 2, 0, [0.99], norm=True),
]


FIVE = [record(name, 0.1, 2, 0, [0.9]) for name in ("dctps", "rigl", "snip", "set", "force")]  # in two rows


def cell(table, **at):
    for name, value in at.items():
        table = table[table[name] == value]
    assert len(table) == 1
    return table.iloc[0]


def test_the_table_is_the_one_by_hand():
    table = trainability_table(RECORDS, 0.9)
    assert len(table) == 5
    row = cell(table, method="dctps", density=0.1, depth=2, kind="mlp, hidden=9")
    assert (row["runs"], row["reached"], row["share"], row["epoch"]) == (2, 2, 1.0, 1.5)
    assert row["best"] == pytest.approx((0.95 + 0.99) / 2)
    row = cell(table, method="dctps", density=0.1, depth=4)
    assert (row["runs"], row["reached"], row["share"], row["epoch"]) == (2, 1, 0.5, 3)
    row = cell(table, density=0.01)
    assert (row["reached"], row["share"]) == (0, 0.0)
    assert math.isnan(row["epoch"])
    assert cell(table, method="ordinary")["epoch"] == 1
    assert cell(table, kind="mlp, hidden=9, norm=True")["runs"] == 1


def test_a_higher_bar_is_reached_by_fewer_and_later():
    low, high = (trainability_table(RECORDS, bar) for bar in (0.5, 0.95))
    assert (high["reached"] <= low["reached"]).all()
    both = high["epoch"].notna() & low["epoch"].notna()
    assert (high["epoch"][both] >= low["epoch"][both]).all()


def test_a_failed_run_did_not_get_there():
    failed = Run(Choice("dctps"), Choice("mlp", {"hidden": [9]}), Choice("digits"), density=0.1, seed=2)
    table = trainability_table([*RECORDS, failure(failed)], 0.9)
    row = cell(table, method="dctps", density=0.1, depth=2, kind="mlp, hidden=9")
    assert (row["runs"], row["reached"]) == (3, 2)


def test_a_depth_at_which_nothing_came_to_its_end_is_there():
    failed = Run(Choice("dctps"), Choice("mlp", {"hidden": [9, 9, 9]}), Choice("digits"), density=0.1)
    table = trainability_table([failure(failed)], 0.9)
    assert (table["depth"].tolist(), table["share"].tolist()) == ([4], [0.0])
    assert len(list(heat_maps(table, 0.9))) == 1


def test_biases_are_no_layers():
    def of(name, tensors):
        run = Run(Choice(name), Choice("mlp", {"hidden": [9]}), Choice("digits"), density=0.1)
        return finished(run, tensors=tensors)

    weights = [{"name": f"layers.{n}.weight", "shape": [9, 9]} for n in (0, 1)]
    both = [*weights, {"name": "layers.0.bias", "shape": [9]}]
    assert trainability_table([of("dctps", weights), of("random_subspace", both)], 0.5)["depth"].tolist() == [2, 2]


def test_networks_of_other_widths_and_other_data_are_apart():
    def of(hidden, **options):
        run = Run(Choice("dctps"), Choice("mlp", {"hidden": hidden}), Choice("mnist5k", options), density=0.1)
        return finished(run, tensors=[{"name": f"layers.{n}", "shape": [9, 9]} for n in (0, 1)])

    table = trainability_table([of([9]), of([5]), of([5], train=100)], 0.5)
    assert table["runs"].tolist() == [1, 1, 1]
    mixed = trainability_table([of([9, 5, 5]), of([9, 9, 5])], 0.5)
    assert mixed["kind"].tolist() == ["mlp, hidden=[9, 5, 5]", "mlp, hidden=[9, 9, 5]"]
    assert [title.partition(": ")[2] for title, _ in heat_maps(table, 0.5)] == [
        "mnist5k; mlp, hidden=9",
        "mnist5k; mlp, hidden=5",
        "mnist5k (train=100); mlp, hidden=5",
    ]


def test_results_without_a_training_accuracy_did_not_get_there():
    old = record("dctps", 0.1, 2, 0, [0.99])
    del old["metrics"]["epochs"][0]["train_accuracy"]
    assert trainability_table([old], 0.5)["reached"].tolist() == [0]


@pytest.mark.parametrize("accuracy", [0, 1.01, math.nan])
def test_an_accuracy_that_cannot_be_is_refused(accuracy):
    with pytest.raises(ValueError, match=r"accuracy must be in \(0, 1\], got"):
        trainability_table(RECORDS, accuracy)


def test_there_is_a_heat_map_for_every_kind_of_network_with_a_panel_for_every_method():
    table = trainability_table(RECORDS, 0.9)
    maps = dict(heat_maps(table, 0.9))
    assert list(maps) == [
        "When training comes to 90 % of the training samples: digits; mlp, hidden=9",
        "When training comes to 90 % of the training samples: digits; mlp, hidden=9, norm=True",
    ]
    dense, dctps = maps["When training comes to 90 % of the training samples: digits; mlp, hidden=9"].axes[:2]
    assert [axes.get_title("left") for axes in (dense, dctps)] == ["ordinary (dense)", "DCTpS, EPL"]
    assert [label.get_text() for label in dctps.get_xticklabels()] == ["0.1", "0.01"]
    assert [label.get_text() for label in dctps.get_yticklabels()] == ["2", "4"]
    assert {text.get_position(): text.get_text() for text in dctps.texts} == {(0, 0): "1.5", (0, 1): "3", (1, 0): "-"}
    shades = {tuple(np.add(patch.get_xy(), (0.48, 0.46)).round(6)): patch.get_facecolor() for patch in dctps.patches}
    (five,) = dict(heat_maps(trainability_table(FIVE, 0.9), 0.9)).values()
    assert [axes.axison for axes in five.axes] == [True] * 5 + [False] * 3
    luminance = {place: sum(colour[:3]) for place, colour in shades.items()}
    assert luminance[0, 0] < luminance[0, 1] < luminance[1, 0]  # darker where more seeds got there
