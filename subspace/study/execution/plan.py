"""A whole study: check it, train what has no result yet, and write its report."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from subspace.study import data, models
from subspace.study.entries.entry import Choice
from subspace.study.entries.options import instantiate
from subspace.study.execution.callbacks import Callback, Callbacks
from subspace.study.execution.launchers import Launcher, make_launcher
from subspace.study.execution.live import in_notebook
from subspace.study.execution.runner import carry_out, unfinished
from subspace.study.results.store import Record, Store
from subspace.study.spec import files
from subspace.study.spec.study import Run, Study, Training

if TYPE_CHECKING:
    import pandas as pd

    from subspace.study.reports.report import Report

Asked = Study | Mapping[str, Any] | Path | str  # a study, a table of its fields, or the path of a file or a preset
OUT = "subspace-study"


@dataclass(frozen=True)
class Plan:
    """A study that can run, its runs, the store of their results, and the launcher that trains them.

    `Plan.of` makes one, and is the only place that checks what a study names.
    """

    study: Study
    runs: Sequence[Run]
    store: Store
    launcher: Launcher

    @classmethod
    def of(
        cls,
        asked: Asked,
        out: Path | str = OUT,
        launcher: str | Launcher = "pool",
        options: Mapping[str, Any] | None = None,
    ) -> Plan:
        """The plan of a study; arguments and errors are those of `run`."""
        study = files.load(asked)
        runs = study.runs()
        check_training(study.train)
        for entry in study.models:
            models.require(Choice.of(entry, "model"))
        for entry in study.data:
            data.find(Choice.of(entry, "data").name)
            if launcher in ("pool", "inline"):  # other launchers train on other machines
                data.require(Choice.of(entry, "data"))
        store = Store(out)
        if isinstance(launcher, str):
            launcher = make_launcher(launcher, store.folder, study.train, options or {})
        store.require_writable()
        return cls(study, runs, store, launcher)

    def unfinished(self, callback: Callback, retry: bool = False) -> list[Run]:
        """The runs that have no result yet; retry: failed ones as well."""
        return unfinished(self.runs, self.store, callback, retry)

    def results(self) -> list[tuple[Run, Record]]:
        """The runs that have an intact record, and these."""
        return [(run, record) for run in self.runs for record in read_intact([run], self.store)]

    def carry_out(self, callbacks: Sequence[Callback] = (), retry: bool = False) -> None:
        """Train what has no result yet."""
        told = Callbacks(callbacks)
        try:
            missing = self.unfinished(told, retry)
            told.say(f"{len(missing)} of {len(self.runs)} runs to train, in {self.store.folder}")
            told.expect(missing)
            carry_out(missing, self.store, self.launcher, told)
        finally:
            told.close()


def run(
    study: Asked,
    out: Path | str = OUT,
    launcher: str | Launcher = "pool",
    *,
    options: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callback] | None = None,
    retry: bool = False,
) -> pd.DataFrame:
    """Train every run of a study that has no result yet, and write its tables, figures and report.html.

    Args:
        study: a `Study`, a table of its fields, or the path of a TOML or JSON file, or the name of a preset.
        out: the folder of results, which studies may share. The report goes to out/<name of the study>.
        launcher: "pool" (worker processes of this machine), "inline" (this process), "ray", "slurm", or your own.
        options: the launcher's, as {"workers": 2} for the pool.
        callbacks: told of runs and epochs while the study runs; by default, in a notebook, what shows them there.
        retry: try those runs again that have failed twice.

    Returns:
        The long table of the runs; `results.schema` describes its columns. A run that failed has its error there, and
        a warning tells the first.

    Raises:
        ValueError: the study cannot be as it says; nothing has run.
        StorageError: results cannot be written; what has finished is kept.
    """
    plan = Plan.of(study, out, launcher, options)
    plan.carry_out(in_notebook() if callbacks is None else callbacks, retry)
    failed = [(each, record["error"]) for each, record in plan.results() if record["status"] == "failed"]
    if failed:
        first, error = failed[0]
        warnings.warn(f"{len(failed)} of {len(plan.runs)} runs failed, the first, {first}: {error}", stacklevel=2)
    return write_report(plan.study, plan.store).runs


def report(study: Asked, out: Path | str = OUT) -> pd.DataFrame:
    """The report of what is in the folder of results, without training; as `run`."""
    return write_report(files.load(study), Store(out)).runs


def write_report(
    study: Study,
    store: Store,
    folder: Path | None = None,
    hosts: bool = False,
    say: Callable[[str], object] = warnings.warn,
) -> Report:
    """Write the report of what the store has of a study, by default in the folder of its name.

    hosts: with names of hosts and absolute paths, as the store has them. say: told what is damaged, and left out.
    """
    from subspace.study.reports.write import write  # it loads pandas and matplotlib

    return write(study, read_intact(study.runs(), store, say), folder or store.folder / study.name, hosts)


def read_intact(runs: Iterable[Run], store: Store, say: Callable[[str], object] = warnings.warn) -> list[Record]:
    """What the store has of the runs, in their order, without what is damaged, which is said."""
    records = []
    for run in runs:
        try:
            records += [record] if (record := store.read(run)) else []
        except ValueError as damage:
            say(f"{damage}; it is left out")
    return records


def check_training(train: Training) -> None:
    """ValueError for an optimizer, a schedule, options of theirs or a device that torch does not have here."""
    optimizer = instantiate(torch.optim, Choice.of(train.optimizer, "optimizer"), [torch.zeros(1)], lr=0.1)
    parts = {"optimizer": optimizer}
    if train.schedule:
        chosen = Choice.of(train.schedule, "schedule")
        parts["schedule"] = instantiate(torch.optim.lr_scheduler, chosen, optimizer)
    for name, part in parts.items():
        try:
            part.step()
        except Exception as error:  # those that want a closure, a figure or another number
            told = f"{type(error).__name__}: {error}"
            raise ValueError(
                f"{name} must step by itself, got {told} from {Choice.of(getattr(train, name), name)}"
            ) from error
    try:
        torch.empty(0, device=train.device)
    except Exception as error:  # torch raises many kinds
        raise ValueError(f"device must be one that torch can use here, got {train.device!r}: {error}") from None
