"""Results as the long tables that `results.schema` describes: one row per run, per epoch and per tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pandas as pd

from subspace.study.entries.entry import Choice, canonical
from subspace.study.methods.registry import METHODS, earlier
from subspace.study.results.schema import IDENTITY, TABLES, TRAINING, typed
from subspace.study.results.store import Record
from subspace.study.spec.study import label as labelled

Row = dict[str, Any]
CLOSING = ("test_accuracy", "test_loss", "validation_accuracy", "train_loss", "train_accuracy")  # of the last epoch


def runs_table(records: Iterable[Record]) -> pd.DataFrame:
    """One row per run: its configuration, how it ended, and its figures, which a failed run does not have."""
    return _table("runs", records, run_row)


def epochs_table(records: Iterable[Record]) -> pd.DataFrame:
    """One row per epoch of every finished run, with what identifies the run."""
    return _table("epochs", records, _epochs)


def tensors_table(records: Iterable[Record]) -> pd.DataFrame:
    """One row per tensor that is re-parametrized in a finished run's trained network."""
    return _table("tensors", records, _tensors)


def _table(name: str, records: Iterable[Record], rows: Callable[[Record], Iterable[Row]]) -> pd.DataFrame:
    """The rows of all records, of which only the columns of the schema are kept."""
    whole = (row for record in records for row in rows(record))
    kept = [{key: None if row.get(key) == "" else row.get(key) for key in TABLES[name]} for row in whole]
    return typed(pd.DataFrame(kept, columns=list(TABLES[name]), dtype=object), name)


def run_row(record: Record) -> Iterator[Row]:
    """A record, flat; its one row."""
    configuration, environment = record["configuration"], record.get("environment") or {}
    train = dict(configuration["train"])
    for name in ("optimizer", "schedule"):
        if train.get(name):
            train |= _flat(Choice.of(train[name], name), name)
    row = {
        **identity(configuration),
        **{name: train.get(name) for name in TRAINING},
        "theta_bits": train.get("theta_bits", 0),
        **_flat(Choice(**configuration["data"]), "data"),
        **_flat(Choice(**configuration["model"]), "model"),
        "method": configuration["method"]["name"],
        "options": canonical(chosen(configuration["method"]).options),
        "version": configuration["version"],
        **{name: record.get(name) for name in ("schema", "status", "attempts", "error", "finished_at")},
        "warnings": len(record.get("warnings") or []),
        **{name: environment.get(name) for name in ("cpu", "torch")},
        "torch_threads": environment.get("threads"),
    }
    yield row | figures(record.get("metrics") or {})


def figures(metrics: Mapping[str, Any]) -> Row:
    """The figures of a run's row; none without metrics."""
    if not metrics:
        return {}
    asked = {"dim", "learning_rate", "epochs"}  # in the table, these say what the configuration does
    row = {name: value for name, value in metrics.items() if name not in asked}
    last = metrics["epochs"][-1] if metrics["epochs"] else {}
    row |= {name: last.get(name) for name in CLOSING}
    row |= {kind: metrics["beside"].get(kind, 0) for kind in ("bias", "norm", "other")}
    theta = metrics["dim"] - metrics["alpha"]
    density = theta / metrics["weights"] if metrics["weights"] else None
    return row | {"theta": theta, "realised_density": density, "start_rate": metrics.get("learning_rate")}


def identity(configuration: Mapping[str, Any]) -> Row:
    """What tells a run from the others: the columns that all tables have."""
    row = {name: configuration.get(name) for name in IDENTITY}
    digest = hashlib.sha256(canonical(configuration).encode()).hexdigest()
    names = {name: configuration[name]["name"] for name in ("data", "model")}
    return row | names | {"hash": digest[:16], "label": label(configuration["method"])}


def chosen(method: Mapping[str, Any]) -> Choice:
    """A method with its options, those too that a configuration leaves out and that are not the method's default."""
    choice = Choice(**method)
    defaults = METHODS[choice.name].options if choice.name in METHODS else {}
    older = {name: value for name, value in earlier(choice).items() if value != defaults[name]}
    return Choice(choice.name, older | dict(choice.options))


def label(method: Mapping[str, Any]) -> str:
    """A method's label; its name and options where this installation does not have it."""
    choice = chosen(method)
    try:
        return labelled(choice)
    except ValueError:
        return str(choice)


def _flat(choice: Choice, what: str) -> Row:
    """A choice as two columns."""
    return {what: choice.name, f"{what}_options": canonical(choice.options)}


def _epochs(record: Record) -> Iterator[Row]:
    for epoch in (record.get("metrics") or {}).get("epochs", []):
        yield identity(record["configuration"]) | epoch


def _tensors(record: Record) -> Iterator[Row]:
    for place, tensor in enumerate((record.get("metrics") or {}).get("tensors", [])):
        row = identity(record["configuration"]) | {"place": place, "shape": "x".join(map(str, tensor["shape"]))}
        row |= {name: tensor[name] for name in ("name", "offset", "embedding", "numel")}
        yield row | {"tensor_dim": tensor["dim"], "tensor_density": tensor["density"]}
