"""Tables say what the records say, to the figure."""

import dataclasses
import json
import math

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from subspace.study.entries.entry import Choice
from subspace.study.methods import METHODS
from subspace.study.results import schema
from subspace.study.results.equal_cost import at_equal
from subspace.study.results.summary import by_setting, summary_table
from subspace.study.results.tables import epochs_table, runs_table, tensors_table
from subspace.study.spec.study import Run, Study, Training
from tests.support.records import failure, finished

TABLES = {"runs": runs_table, "epochs": epochs_table, "tensors": tensors_table}
TRAIN = Training(epochs=2, batch=3, learning_rate=0.5, optimizer={"name": "SGD", "momentum": 0.9})


def run(name, density=None, seed=0, dim=None, **options):
    return Run(Choice(name, options), density=density, dim=dim, seed=seed, train=TRAIN)


RECORDS = [
    finished(run("dctps", 0.01, 0), 0.5),
    finished(run("dctps", 0.01, 1), 0.7),
    failure(run("dctps", 0.01, 2), "no luck"),
    finished(run("dctps", 0.1, 0), 0.8),
    finished(run("imp", 0.1, 0, rounds=3), 0.9),
    finished(run("ordinary", seed=0), 0.95),
    finished(run("ordinary", seed=1), 0.97),
    finished(run("ordinary", seed=2), 0.96),
]


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("records", [RECORDS, RECORDS[2:3], []])
def test_a_table_has_exactly_the_documented_columns_and_types(name, records):
    table = TABLES[name](records)
    types = {key: schema.TYPES[column.type] for key, column in schema.TABLES[name].items()}
    assert table.dtypes.astype(str).to_dict() == types


def test_every_column_is_described_and_every_field_of_a_configuration_is_a_column():
    described = schema.describe()
    assert (described["description"].str.len() > 0).all()
    assert set(described["type"]) <= set(schema.TYPES)
    runs = schema.TABLES["runs"]
    assert {field.name for field in dataclasses.fields(Training)} == set(schema.TRAINING) - {
        "optimizer_options",
        "schedule_options",
    }
    assert {field.name for field in dataclasses.fields(Run)} - {"train"} <= set(runs)


def test_a_row_is_the_configuration_and_the_figures_after_the_last_epoch():
    row = runs_table(RECORDS).iloc[0]
    metrics = RECORDS[0]["metrics"]
    assert row["hash"] == run("dctps", 0.01, 0).hash
    assert (row["method"], row["label"], row["density"], row["seed"]) == ("dctps", "DCTpS, EPL", 0.01, 0)
    assert (row["epochs"], row["batch"], row["learning_rate"], row["start_rate"]) == (2, 3, 0.5, 5.0)
    assert (row["optimizer"], row["optimizer_options"]) == ("SGD", '{"momentum":0.9}')
    assert (row["test_accuracy"], row["train_loss"]) == (0.5, metrics["epochs"][-1]["train_loss"])
    assert (row["theta"], row["alpha"], row["bias"], row["norm"], row["other"]) == (metrics["dim"] - 5, 5, 10, 4, 0)
    assert row["realised_density"] == (metrics["dim"] - 5) / metrics["weights"]
    assert (row["cpu"], row["torch_threads"], row["schema"]) == ("Some Processor", 1, 2)
    assert pd.isna(row["dim"])
    assert pd.isna(row["schedule"])


def test_a_failed_run_has_its_error_and_no_figures():
    row = runs_table(RECORDS).iloc[2]
    assert (row["status"], row["error"], row["attempts"], row["seed"]) == ("failed", "no luck", 2, 2)
    assert row[["test_accuracy", "theta", "flops_total", "file_bytes", "seconds"]].isna().all()


def test_options_are_json_in_the_row_and_in_the_label_where_they_are_no_defaults():
    row = runs_table(RECORDS).iloc[4]
    assert (row["label"], row["options"]) == ("IMP, 3 rounds", '{"rounds":3,"shuffle":false}')


@pytest.mark.parametrize("name", [name for name, known in METHODS.items() if "batches" in known.options])
def test_an_option_that_is_younger_than_the_format_is_in_row_and_label_where_it_is_no_default(name):
    runs = runs_table(finished(run(name, 0.1, batches=batches)) for batches in ("fresh", "one"))
    assert runs["label"].tolist() == [METHODS[name].label, f"{METHODS[name].label}, batches=one"]
    assert [json.loads(options).get("batches") for options in runs["options"]] == ["fresh", "one"]
    assert len(summary_table(runs)) == 2


def test_a_method_that_is_not_installed_here_still_has_its_row():
    record = finished(run("dctps", 0.1))
    record["configuration"] = {**record["configuration"], "method": {"name": "gone.away:it", "options": {"k": 2}}}
    assert runs_table([record])["label"][0] == "gone.away:it, k=2"
    assert len(summary_table(runs_table([record]))) == 1


def test_epochs_and_tensors_are_those_of_the_finished_runs():
    epochs, tensors = epochs_table(RECORDS), tensors_table(RECORDS)
    assert list(epochs["epoch"]) == [1, 2] * 7
    first = RECORDS[0]["metrics"]
    assert list(epochs["test_accuracy"][:2]) == [epoch["test_accuracy"] for epoch in first["epochs"]]
    assert len(tensors) == 5 * 7
    assert list(tensors["shape"][:2]) == ["6x1x5x5", "16x6x5x5"]
    mine = tensors[tensors["hash"] == run("dctps", 0.01, 0).hash]
    assert mine["tensor_dim"].sum() == first["dim"] - first["alpha"]
    assert list(mine["tensor_density"]) == [tensor["density"] for tensor in first["tensors"]]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("name", TABLES)
@given(error=st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), min_size=1), figure=st.floats(0, 1e300))
def test_a_table_that_is_written_is_read_as_it_was(name, kind, error, figure, tmp_path_factory):
    path = tmp_path_factory.mktemp("round-trip") / f"{name}.{kind}"
    table = TABLES[name]([*RECORDS, failure(run("set", 0.1), error), finished(run("set", 0.2), seconds=figure)])
    {"csv": table.to_csv, "parquet": table.to_parquet}[kind](path, index=False)
    pd.testing.assert_frame_equal(schema.read(path, name), table, check_exact=True)


def test_means_spreads_and_sizes_equal_those_computed_by_hand():
    table = summary_table(runs_table(RECORDS))
    assert list(table["label"]) == ["ordinary (dense)", "IMP, 3 rounds", "DCTpS, EPL", "DCTpS, EPL"]
    assert list(table["seeds"]) == [3, 1, 1, 2]
    assert list(table["failed"]) == [0, 0, 0, 1]
    assert list(table["mean"]) == pytest.approx([0.96, 0.9, 0.8, 0.6])
    assert list(table["min"]) == [0.95, 0.9, 0.8, 0.5]
    assert list(table["max"]) == [0.97, 0.9, 0.8, 0.7]
    assert table["std"][0] == pytest.approx(0.01)
    assert table["std"][3] == pytest.approx(0.1 * math.sqrt(2))
    assert table["std"][1:3].isna().all()
    assert list(table["density"][1:]) == [0.1, 0.1, 0.01]
    assert table["theta"][3] == RECORDS[0]["metrics"]["dim"] - 5
    assert table["file_bytes"][3] == RECORDS[0]["metrics"]["file_bytes"]


def test_the_change_is_against_the_dense_network_of_the_same_seed_data_and_model():
    table = summary_table(runs_table(RECORDS))
    assert list(table["change"]) == pytest.approx([0, 0.9 - 0.95, 0.8 - 0.95, (0.5 - 0.95 + 0.7 - 0.97) / 2])
    assert table["change_std"][3] == pytest.approx((0.7 - 0.97 - (0.5 - 0.95)) / math.sqrt(2))
    assert list(table["paired"]) == [3, 1, 1, 2]
    elsewhere = [dataclasses.replace(run("ordinary", seed=seed), data=Choice("other")) for seed in (0, 1)]
    table = summary_table(runs_table([*RECORDS[:4], *map(finished, elsewhere)]))
    assert table.loc[table["method"] == "dctps", "change"].isna().all()
    assert list(table["paired"]) == [0, 0, 2]
    assert [name for name, _ in by_setting(table)] == ["mnist5k, lenet5", "other, lenet5"]


def test_costs_are_means_over_seeds():
    pair = [finished(run("force", 0.1, seed), flops_total=total) for seed, total in enumerate((2e9, 4e9))]
    assert summary_table(runs_table(pair))["flops_total"][0] == 3e9


def test_methods_and_sizes_are_in_order_and_failures_are_never_dropped():
    runs = Study("s", tuple(METHODS), dims=(10, 1000), seeds=2, train=TRAIN).runs()
    table = summary_table(runs_table([failure(one) for one in reversed(runs)]))
    assert list(dict.fromkeys(table["method"])) == list(METHODS)
    assert list(table["dim"][1:]) == [1000, 10] * (len(METHODS) - 1)
    assert (table["failed"] == 2).all()
    assert (table["seeds"] == 0).all()
    assert table["mean"].isna().all()


def test_runs_that_were_not_trained_alike_are_not_summed_up():
    other = dataclasses.replace(run("dctps", 0.1), train=Training(epochs=5))
    with pytest.raises(ValueError, match="trained alike to be summed up, got epochs 2, 5"):
        summary_table(runs_table([RECORDS[0], finished(other)]))


def test_a_study_whose_every_run_failed_has_a_row_and_no_figure():
    table = summary_table(runs_table(RECORDS[2:3]))
    assert list(table["failed"]) == [1]
    assert table["mean"].isna().all()
    assert at_equal(table, "bytes").empty
