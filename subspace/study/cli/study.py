"""The options of `subspace study`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from subspace.study.cli import analyses
from subspace.study.cli.live import LiveProgress
from subspace.study.cli.progress import Progress, outcome
from subspace.study.cli.status import standing
from subspace.study.distributed import rendezvous as world
from subspace.study.execution import study as experiment
from subspace.study.execution.callbacks import Callback
from subspace.study.execution.estimate import estimate
from subspace.study.execution.launchers import torchrun
from subspace.study.execution.runner import unfinished
from subspace.study.execution.trackers import named as tracker
from subspace.study.results.store import StorageError, Store
from subspace.study.spec import files
from subspace.study.spec.presets import presets
from subspace.study.spec.study import Run

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)
OUT = Path("subspace-study")


@app.callback()
def subspace() -> None:
    """Train neural networks in subspaces: every weight as w = d + U theta."""


@app.command()
def study(
    file: Annotated[Path | None, typer.Argument(help="a study as .toml or .json, or a preset's name")] = None,
    set_: Annotated[list[str], typer.Option("--set", help="KEY=VALUE, as train.epochs=20; may be repeated")] = [],  # noqa: B006
    methods: Annotated[str | None, typer.Option(help="names, with commas between, or all")] = None,
    densities: Annotated[str | None, typer.Option(help="fractions in (0, 1], with commas between")] = None,
    dims: Annotated[str | None, typer.Option(help="numbers of trained entries, in place of densities")] = None,
    seeds: Annotated[int | None, typer.Option(help="how many: seeds 0, 1, ...")] = None,
    model: Annotated[str | None, typer.Option("--model", "--models", help="names or MODULE:NAME, with commas")] = None,
    data: Annotated[str | None, typer.Option("--data", help="names or MODULE:NAME, with commas between")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="folder of CIFAR's and Tiny ImageNet's archives")] = None,
    out: Annotated[Path, typer.Option(help="folder of results; what is finished there is not run again")] = OUT,
    launcher: Annotated[str, typer.Option(help="pool, inline, ray or slurm")] = "pool",
    launch: Annotated[list[str], typer.Option(help="KEY=VALUE, an option of ray or slurm; may be repeated")] = [],  # noqa: B006
    workers: Annotated[int | None, typer.Option(help="processes of the pool; as many as there are cores for")] = None,
    retry: Annotated[bool, typer.Option("--retry", help="try runs again that have failed twice")] = False,
    at: Annotated[str | None, typer.Option(help="compare at equal bytes, flops, memory, stored or inference")] = None,
    log: Annotated[list[str], typer.Option(help="tensorboard, wandb or trackio; may be repeated")] = [],  # noqa: B006
    list_: Annotated[bool, typer.Option("--list", help="say how every run stands, and stop")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would run, and what it takes, and stop")] = False,
    presets_: Annotated[bool, typer.Option("--presets", help="name the studies that come with this, and stop")] = False,
    show: Annotated[bool, typer.Option("--show", help="print the study as TOML, and stop")] = False,
    report: Annotated[bool, typer.Option("--report", help="train nothing: the report of what is there")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="lines in place of bars, without control codes")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="nothing but failures")] = False,
) -> None:
    """Compare methods at equal budgets: results, tables, figures and a report.html.

    FILE is a study as .toml or .json, or the name of a preset, such as talk/accuracy; --presets names them.

    Without a file: six methods on 5,000 real digits, 2 minutes on 2 cores.
    """
    torchrun.begin()
    if data_dir:
        os.environ["SUBSPACE_DATA"] = str(data_dir.absolute())  # which the processes that train inherit
    if presets_:
        typer.echo("\n".join(f"{name:36} {says}" for name, says in presets().items()))
        return
    lists: dict[str, Any] = {"methods": methods, "densities": densities, "dims": dims, "models": model, "data": data}
    try:
        table = files.read(file) if file else {}
        table |= {name: words(text) for name, text in lists.items() if text is not None}
        table |= {} if seeds is None else {"seeds": seeds}
        chosen = files.study(files.assigned(table, set_))
        runs = chosen.runs()
        experiment.check(chosen, at)
        if not (show or list_ or report):
            world.check(chosen.train.processes)
            experiment.ready(chosen, launcher)
        if show:
            typer.echo(files.toml(chosen), nl=False)
            return
        store = Store(out)
        callbacks = [tracker(name, store.folder / chosen.name) for name in log]
        started = experiment.launched(launcher, store, chosen, workers, files.assigned({}, launch))
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from None
    bars = sys.stdout.isatty() and not plain
    console = Console(quiet=quiet) if bars else Console(quiet=quiet, width=100, color_system=None)
    with stopping(runs, store):
        if list_:
            console.print(standing(runs, store))
        elif dry_run:
            missing = unfinished(runs, store, Callback(), retry)
            console.print(str(estimate(missing, store, started.capacity or len(runs))), highlight=False, markup=False)
        elif report:
            experiment.report(chosen, store, console, at)
        else:
            callbacks.append(LiveProgress(console) if bars else Progress(console))
            experiment.run(chosen, out=out, launcher=started, callbacks=callbacks, retry=retry, at=at, console=console)
    failed = [(run, record) for run in runs if (record := store.read(run)) and record["status"] == "failed"]
    for run, record in failed if quiet else ():
        typer.echo(outcome(run, record), err=True)
    raise typer.Exit(1 if failed else 0)


app.command()(analyses.trainability)
app.command()(analyses.jacobian)


def words(text: str) -> list[Any]:
    """The values of a list with commas: all in TOML, as tables are, or words."""
    listed = files.value(f"[{text}]")
    return (
        listed if isinstance(listed, list) else [files.value(word.strip()) for word in text.split(",") if word.strip()]
    )


@contextmanager
def stopping(runs: Sequence[Run], store: Store) -> Iterator[None]:
    """End on Ctrl-C, on SIGTERM and where the disk fails with one sentence that says how to go on."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        done = sum(record["status"] == "finished" for record in experiment.records(runs, store))
        typer.echo(f"Stopped with {done} of {len(runs)} runs finished: the same command goes on from there.")
        raise typer.Exit(130) from None
    except ValueError as error:  # of a launcher, about its options
        raise typer.BadParameter(str(error)) from None
    except StorageError as error:
        typer.echo(f"Stopped: {error}. What is finished is kept, and the same command goes on from there.", err=True)
        raise typer.Exit(1) from None
