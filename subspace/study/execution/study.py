"""A whole study from Python: train what is missing, then tables, figures and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from subspace.study import data, models
from subspace.study.distributed import rendezvous as world
from subspace.study.entries.entry import Choice
from subspace.study.entries.torch_classes import made
from subspace.study.execution.callbacks import Callback, Callbacks
from subspace.study.execution.environment import cores
from subspace.study.execution.launchers import Launcher, torchrun
from subspace.study.execution.runner import carry_out, unfinished
from subspace.study.results.store import Record, Store, storage
from subspace.study.spec import files
from subspace.study.spec.study import Run, Study

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

LAUNCHERS = ("pool", "inline", "ray", "slurm")


def run(
    study: Study | Mapping[str, Any] | Path | str,
    *,
    out: Path | str = "subspace-study",
    launcher: str | Launcher = "pool",
    workers: int | None = None,
    options: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
    retry: bool = False,
    at: str | None = None,
    console: Console | None = None,
) -> pd.DataFrame:
    """Bring every run of a study to its result, and return the long table of them; `results.schema` describes it.

    study: a `Study`, a table of its fields, or the path of a TOML or JSON file. out: the folder of results, which other
    studies may share; what is finished there is not run again, and what was interrupted goes on from its last epoch.
    Tables, figures and report.html go to out/<name of the study>. launcher: "pool" (so many worker processes; by
    default one for every core or, with more threads, as many as there are cores for), "inline" (this process), "ray",
    "slurm", or one of yours. options: the launcher's. retry: try failed runs again. at: also compare at equal "bytes",
    "flops", ... (see `results.equal_cost`). console: where the tables are shown.

    Raises ValueError for a study that cannot be, before anything runs, and StorageError where results cannot be
    written; a run that fails raises nothing, its row has the error.
    """
    torchrun.begin()
    if not isinstance(study, Study):
        study = files.study(study if isinstance(study, Mapping) else files.read(study))
    runs = study.runs()
    check(study, at)
    world.check(study.train.processes)
    ready(study, launcher)
    store, told = Store(out), Callbacks(callbacks)
    started = launched(launcher, store, study, workers, options or {}) if isinstance(launcher, str) else launcher
    try:
        missing = unfinished(runs, store, told, retry)
        told.say(f"{len(runs)} runs, {len(runs) - len(missing)} of them finished already, in {store.folder}")
        told.expect(missing)
        carry_out(missing, store, started, told)
    finally:
        told.close()
    return report(study, store, console, at)


def report(study: Study, store: Store, console: Console | None = None, at: str | None = None) -> pd.DataFrame:
    """Tables, figures and report.html of what the store has of a study, without training; as `run`."""
    from subspace.study.reports.write import report as written  # it loads pandas and matplotlib

    folder = store.folder / study.name
    with storage(folder):
        return written(study, records(study.runs(), store), folder, console, at, files.toml(study))


def records(runs: Sequence[Run], store: Store) -> list[Record]:
    """What the store has of the runs, in their order."""
    return [record for run in runs if (record := store.read(run))]


def check(study: Study, at: str | None = None) -> None:
    """ValueError for what a study names and there is not: data, models, optimizers, schedules, devices, costs."""
    if at is not None:
        from subspace.study.results.equal_cost import costing  # it loads pandas

        costing(at)
    for entry in study.data:
        data.named(Choice.of(entry, "data").name)
    for entry in study.models:
        models.named(Choice.of(entry, "model").name)
    train = study.train
    optimizer = made(torch.optim, Choice.of(train.optimizer, "optimizer"), [torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    if train.schedule:
        made(torch.optim.lr_scheduler, Choice.of(train.schedule, "schedule"), optimizer)
    try:
        torch.empty(0, device=train.device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device must be one that torch can use here, got {train.device!r}: {error}") from None


def ready(study: Study, launcher: str | Launcher) -> None:
    """ValueError, once for all runs, for data that are not there, where the runs are trained on this machine."""
    if launcher in ("pool", "inline"):
        for entry in study.data:
            data.ready(Choice.of(entry, "data"))


def launched(name: str, store: Store, study: Study, workers: int | None, options: Mapping[str, Any]) -> Launcher:
    """The launcher of that name; under torchrun, its processes. ValueError for another name or options."""
    if world.size() > 1:
        from subspace.study.execution.launchers.torchrun import Torchrun

        return Torchrun(store.folder)
    if name == "ray":
        from subspace.study.execution.launchers.ray import Ray

        return Ray(store.folder, options)
    if name == "slurm":
        from subspace.study.execution.launchers.slurm import Slurm

        return Slurm(store.folder, options)
    if name not in LAUNCHERS:
        raise ValueError(f"launcher must be one of {', '.join(LAUNCHERS)}, got {name!r}")
    if options:
        raise ValueError(f"options of {name} must be none, got {', '.join(options)}")
    if name == "inline":
        from subspace.study.execution.launchers.inline import Inline

        return Inline(store.folder)
    from subspace.study.execution.launchers.pool import Pool

    return Pool(store.folder, cores() // study.train.threads or 1 if workers is None else workers)
