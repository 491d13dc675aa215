"""Runs summed up over their seeds: one row per method and size, on each data set and network."""

from __future__ import annotations

import json
import math

import pandas as pd

from subspace.study.methods import METHODS
from subspace.study.results.schema import BYTES, FLOPS, SIZES, TRAINING
from subspace.study.spec.study import SIZES as ASKED

DENSE = "ordinary"  # the method whose accuracy every other's is compared with
SETTING = ["data", "data_options", "model", "model_options"]
ENTRY = ["method", "options", "label", *ASKED]
ACCURACY = ["mean", "std", "min", "max", "seeds", "failed", "change", "change_std", "paired", "validation"]
BITS = ["bits", "bits_std"]
COSTS = [*FLOPS, *BYTES, "samples", "seconds"]


def summary_table(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per data set, network, method and size, over the seeds: accuracy, what a run trains, and what it costs.

    runs: a `tables.runs_table`, all of it trained alike; ValueError if not. mean, std, min and max are of the test
    accuracy after the last epoch of the finished runs, `seeds` of them; std is the sample standard deviation (n - 1;
    NaN for one seed). `failed` counts the runs that failed; where no other is, the row is there and its figures are
    NaN. change and change_std are of the difference to the dense network of the same seed, `paired` of them; NaN where
    there is none. validation is the mean accuracy on the samples held apart; bits and bits_std are of the test loss in
    bits for each label, so of text per character. Sizes are the largest over the seeds, costs are means. Rows are in
    order of appearance, but for methods, which are in that of `METHODS`, and for what was asked to train, which falls.
    """
    if mixed := [name for name in [*TRAINING, "version"] if runs[name].nunique(dropna=False) > 1]:
        values = ", ".join(map(str, runs[mixed[0]].unique()))
        raise ValueError(f"runs must be trained alike to be summed up, got {mixed[0]} {values}")
    runs = runs.drop_duplicates("hash")
    runs = runs.assign(**{name: runs[name].astype("float64") for name in ("dim", "bytes", "classes", *SIZES, *COSTS)})
    finished = runs[runs["status"] == "finished"]
    dense = finished.loc[finished["method"] == DENSE, [*SETTING, "seed", "test_accuracy"]]
    dense = dense.rename(columns={"test_accuracy": "dense"})
    runs = runs.merge(dense, on=[*SETTING, "seed"], how="left")
    runs = runs.assign(change=runs["test_accuracy"] - runs["dense"], bad=runs["status"] == "failed")
    groups = runs.groupby([*SETTING, *ENTRY], dropna=False, sort=False)
    accuracy = groups["test_accuracy"].agg(["mean", "std", "min", "max", "count"]).rename(columns={"count": "seeds"})
    change = groups["change"].agg(change="mean", change_std="std", paired="count")
    validation = groups["validation_accuracy"].mean().rename("validation")
    bits = groups["test_loss"].agg(["mean", "std"]).div(math.log(2)).rename(columns={"mean": "bits", "std": "bits_std"})
    bits = bits.where(groups["test_loss"].count() == accuracy["seeds"])  # one of no finite loss has no mean
    parts = [accuracy, groups["bad"].sum().rename("failed"), change, validation, bits]
    parts += [groups[["classes", *SIZES]].max(), groups[COSTS].mean()]
    table: pd.DataFrame = pd.concat(parts, axis=1).reset_index()
    whole = ["dim", "bytes", "classes", *(name for name, column in SIZES.items() if column.type == "integer")]
    table = table.astype({**dict.fromkeys(whole, "Int64"), "seeds": "int64", "failed": "int64", "paired": "int64"})
    columns = [*SETTING, *ENTRY, *ACCURACY, *BITS, "classes", *SIZES, *COSTS]
    return ordered(table.reindex(columns=columns))


def ordered(table: pd.DataFrame) -> pd.DataFrame:
    """The rows by data set and network, method, label, and falling size."""
    known = {name: number for number, name in enumerate(METHODS)}
    where = pd.factorize(pd.MultiIndex.from_frame(table[SETTING]))[0]
    method = table["method"].map(known).astype("float64").fillna(len(known))
    name = pd.factorize(table["label"])[0]
    keys = pd.DataFrame({"setting": where, "method": method, "name": name, "density": -table["density"]})
    for size in ("dim", "bytes"):
        keys[size] = -table[size].astype("float64")
    rows: pd.DataFrame = table.loc[keys.sort_values(list(keys), kind="stable").index].reset_index(drop=True)
    return rows


def by_setting(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The parts of a table by data set and network, each with its name in words: "mnist5k, lenet5"."""
    if not len(table):
        return []
    parts = table.groupby(SETTING, dropna=False, sort=False)
    return [(setting(part.iloc[0]), part.reset_index(drop=True)) for _, part in parts]


def setting(row: pd.Series) -> str:
    """The data set and the network of a row, in words, each with the options it was given."""
    return ", ".join(with_options(row[name], row[f"{name}_options"]) for name in ("data", "model"))


def with_options(name: str, options: str) -> str:
    """A name and its options, from JSON.

    >>> with_options("resnet", '{"depth":110}'), with_options("lenet5", "{}")
    ('resnet (depth=110)', 'lenet5')
    """
    given = ", ".join(f"{option}={value}" for option, value in json.loads(options).items())
    return f"{name} ({given})" if given else name


def sizes(table: pd.DataFrame) -> list[tuple[str, float]]:
    """The sizes that were asked for, falling, as ("density", 0.1), ("dim", 100) or ("bytes", 1000)."""
    return [(name, size) for name in ASKED for size in sorted(table[name].dropna().unique(), reverse=True)]


def extreme_sizes(table: pd.DataFrame) -> list[tuple[str, float]]:
    """The largest, the middle and the smallest size that were asked for."""
    every = sizes(table)
    return list(dict.fromkeys([every[0], every[len(every) // 2], every[-1]])) if every else []


def rows_of_size(table: pd.DataFrame, size: tuple[str, float]) -> pd.DataFrame:
    """The rows of a size."""
    name, value = size
    rows: pd.DataFrame = table[(table[name] == value).fillna(False).astype(bool)]
    return rows
