"""What the columns of the long tables mean: one line each, and the version of all of it.

Schema 2 is that of the records as well (`results.store`). A table has exactly these columns in this order, of these
types; what a run does not have (the figures of a failed run, the dim of a run that was given a density) is missing:
NaN in a column of type number, NA elsewhere, and no text is empty. `string`, `integer` and `boolean` are the types of
pandas that can miss entries; `number` is float64. A change of meaning, of a unit or of a type raises the version; a
column more does not.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pandas as pd

SCHEMA = 2
TYPES = {"string": "string", "integer": "Int64", "number": "float64", "boolean": "boolean"}


class Column(NamedTuple):
    """A column's type (one of `TYPES`), its unit ("" for none) and what it says."""

    type: str
    unit: str
    description: str


def _text(description: str, unit: str = "") -> Column:
    return Column("string", unit, description)


def _count(description: str, unit: str = "numbers") -> Column:
    return Column("integer", unit, description)


def _number(unit: str, description: str) -> Column:
    return Column("number", unit, description)


IDENTITY = {
    "hash": _text("names the run: 16 hexadecimal digits of the SHA-256 of its configuration"),
    "data": _text("the data set"),
    "model": _text("the network"),
    "label": _text("the method's label, with its non-default options"),
    "density": _number("fraction", "requested share of trained weights; missing where another size was, or none"),
    "dim": _count("requested count of trained numbers; missing where another size was, or none"),
    "bytes": _count("requested size of the file that is kept; missing where another size was, or none", "bytes"),
    "seed": _count("fixes initialisation, U, order of the samples and augmentation", ""),
}
TRAINING = {
    "epochs": _count("passes over the training samples", "epochs"),
    "batch": _count("samples in a step, over all processes", "samples"),
    "optimizer": _text("a class of torch.optim"),
    "optimizer_options": _text("its options but the learning rate", "JSON"),
    "learning_rate": _number("", "that of the dense network, as configured"),
    "scaling": _text("root: divided by density^(1/2); none: the same at every density"),
    "schedule": _text("a class of torch.optim.lr_scheduler, stepped after every epoch; missing for none"),
    "schedule_options": _text("its options", "JSON"),
    "validation": _number("fraction", "share of the training samples that was held apart"),
    "structured": Column("boolean", "", "whether layers computed with d and U themselves, not with W built"),
    "device": _text("torch's name of the device that was asked for"),
    "threads": _count("of torch in every process, as configured", "threads"),
    "processes": _count("over how many a batch was divided", "processes"),
    "jacobian": _count("test samples at which the Jacobian was measured", "samples"),
    "theta_bits": _count("of a number of theta in the file, as tested; 0 for exact numbers", "bits"),
}
SIZES = {
    "weights": _count("numbers in the re-parametrized tensors, N"),
    "theta": _count("numbers trained in place of them, without alpha"),
    "realised_density": _number("fraction", "theta / weights, counted in the trained network"),
    "alpha": _count("trained scales of offsets"),
    "bias": _count("trained biases, not in theta"),
    "norm": _count("trained parameters of normalisation layers, not in theta"),
    "other": _count("other trained numbers, not in theta"),
}
FLOPS = {
    "flops_init": _number("FLOPs", "to choose U, as computed"),
    "flops_training": _number("FLOPs", "a training step, per sample: the mean of all steps, structured products"),
    "flops_forward": _number("FLOPs", "a forward pass of the trained network, per sample, structured products"),
    "flops_total": _number("FLOPs", "to choose U and to train"),
    "flops_dense_training": _number("FLOPs", "as flops_training, every W built, by torch's own count"),
    "flops_dense_forward": _number("FLOPs", "as flops_forward, every W built, by torch's own count"),
}
BYTES = {
    "trained_bytes": _count("of all numbers that train", "bytes"),
    "stored_init": _count("held of the weights at the start, the dense ones included where they choose U", "bytes"),
    "stored_training": _count("the most held of the weights at the end of an epoch", "bytes"),
    "stored_bytes": _count("held of the weights of the trained network", "bytes"),
    "file_bytes": _count("the trained network's checkpoint file, measured on disk", "bytes"),
    "file_bytes_dense": _count("the file of the same network's plain state_dict, measured on disk", "bytes"),
    "peak_bytes": _count(
        "the most that torch and numpy hold in a training step; none in several CPU processes", "bytes"
    ),
    "activation_bytes": _count("that a forward pass of a batch keeps for the backward pass, parameters apart", "bytes"),
    "reduced_bytes": _count("sent into the all-reduce per step and process; 0 for one process", "bytes"),
    "reduced_bytes_dense": _count("what the dense network would send", "bytes"),
}
TABLES: dict[str, dict[str, Column]] = {
    "runs": {
        **IDENTITY,
        "method": _text("its name in a study file"),
        "options": _text("the method's own options, all of them", "JSON"),
        "data_options": _text("the data set's options", "JSON"),
        "model_options": _text("the network's options", "JSON"),
        **TRAINING,
        "version": _text("of torch-subspace"),
        "schema": _count("version of this schema", ""),
        "status": _text("finished or failed"),
        "attempts": _count("how often the run was tried", "attempts"),
        "error": _text("why it failed"),
        "warnings": _count("how many the run gave", "warnings"),
        "finished_at": _text("when it ended, well or not", "UTC, ISO 8601"),
        "test_accuracy": _number("fraction", "of the test samples, after the last epoch; no epoch is chosen"),
        "validation_accuracy": _number("fraction", "of the samples held apart, after the last epoch"),
        "test_loss": _number("nats", "mean over the test labels, after the last epoch; missing if it is not finite"),
        "train_loss": _number("nats", "mean over the batches of the last epoch"),
        "train_accuracy": _number("fraction", "of the last epoch's samples, augmented, as they were met"),
        "start_rate": _number("", "the learning rate at the first step"),
        "classes": _count("of the data set", "classes"),
        **SIZES,
        **FLOPS,
        **BYTES,
        "samples": _count("trained on, with repetition", "samples"),
        "seconds": _number("s", "wall time of building and training"),
        "cpu": _text("the processor"),
        "torch": _text("version of torch"),
        "torch_threads": _count("that torch computed with", "threads"),
    },
    "epochs": {
        **IDENTITY,
        "epoch": _count("from 1; the rounds that choose U are not among them", "epochs"),
        "train_loss": _number("nats", "mean over the epoch's batches"),
        "train_accuracy": _number("fraction", "of the epoch's samples, augmented, as they were met"),
        "test_accuracy": _number("fraction", "of the test samples, at the epoch's end"),
        "test_loss": _number("nats", "mean over the test labels, at the epoch's end; missing if it is not finite"),
        "validation_accuracy": _number("fraction", "of the samples held apart, at the epoch's end"),
        "learning_rate": _number("", "during the epoch"),
        "seconds": _number("s", "wall time of the epoch and its test"),
    },
    "tensors": {
        **IDENTITY,
        "place": _count("of the tensor in the network, from 0", ""),
        "name": _text("the tensor's qualified name"),
        "shape": _text("its sizes, with x between"),
        "offset": _text("d"),
        "embedding": _text("U"),
        "numel": _count("its numbers"),
        "tensor_dim": _count("numbers trained in place of them, without alpha"),
        "tensor_density": _number("fraction", "tensor_dim / numel"),
    },
}


def typed(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """A table with the columns, order and types of the table called `name`; what it lacks is missing."""
    columns = TABLES[name]
    found: pd.DataFrame = table.reindex(columns=list(columns))
    found = found.astype({key: TYPES[column.type] for key, column in columns.items()})
    return found


def read(path: Path | str, name: str) -> pd.DataFrame:
    """The table called `name` from its Parquet or CSV file, bit for bit the one that was written."""
    if Path(path).suffix == ".parquet":
        return typed(pd.read_parquet(path), name)
    types = {key: TYPES[column.type] for key, column in TABLES[name].items()}
    # Figures are read as text: the parser of pandas 2 rounds.
    exact = {key: "string" if kind == "float64" else kind for key, kind in types.items()}
    return typed(pd.read_csv(path, dtype=exact, keep_default_na=False, na_values=[""]), name)


def describe() -> pd.DataFrame:
    """Every column of every table: table, column, type, unit, description."""
    rows = [(table, name, *column) for table, columns in TABLES.items() for name, column in columns.items()]
    described: pd.DataFrame = pd.DataFrame(rows, columns=["table", "column", "type", "unit", "description"])
    return described
