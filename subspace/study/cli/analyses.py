"""Commands that ask more of the results of a study than its report does: `subspace trainability`, `subspace jacobian`.

Both train nothing: `subspace study` brings the study to its results first.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from subspace.study.execution import study as experiment
from subspace.study.results.store import Record, Store, storage
from subspace.study.spec import files

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

OUT = Path("subspace-study")
File = Annotated[Path, typer.Argument(help="the study: .toml, .json or a preset's name")]
Set = Annotated[list[str], typer.Option("--set", help="KEY=VALUE, as it was trained with; may be repeated")]
Out = Annotated[Path, typer.Option(help="folder of results")]


def trainability(
    file: File = Path("talk/trainability"),
    accuracy: Annotated[float, typer.Option(help="the training accuracy to come to, in (0, 1]")] = 0.9,
    set_: Set = [],  # noqa: B006
    out: Out = OUT,
) -> None:
    """When is training possible: a heat map over density and depth for every method, and its table."""
    from subspace.study.reports.analyses.trainability import heat_maps, trainability_table  # pandas and matplotlib

    folder, records = finished(file, set_, out)
    try:
        table = trainability_table(records, accuracy)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    written(folder, "trainability", {"trainability": table}, heat_maps(table, accuracy))


def jacobian(file: File = Path("talk/jacobian"), set_: Set = [], out: Out = OUT) -> None:  # noqa: B006
    """Singular values of the input-output Jacobian, at the start and after training: a long table and figures."""
    from subspace.study.reports.analyses.jacobian import (  # pandas and matplotlib
        spectra_figures,
        spectra_summary,
        spectra_table,
    )

    folder, records = finished(file, set_, out)
    table = spectra_table(records)
    if not len(table):
        raise typer.BadParameter("train.jacobian must be at least 1 in the study, got 0")
    summary = spectra_summary(table)
    written(folder, "jacobian", {"jacobian": table, "jacobian-summary": summary}, spectra_figures(table))


def finished(file: Path, settings: Iterable[str], out: Path) -> tuple[Path, list[Record]]:
    """The study's folder, and the records of its runs; BadParameter where there is none of them."""
    try:
        study = files.study(files.assigned(files.read(file), settings))
        store = Store(out)
        records = experiment.records(study.runs(), store)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from None
    if not records:
        raise typer.BadParameter(f"{out} must have results of {study.name}, got none: run subspace study {file}")
    missing = len(study.runs()) - len(records)
    if missing:
        typer.echo(f"{missing} of {len(study.runs())} runs have no result yet")
    return store.folder / study.name, records


def written(folder: Path, name: str, tables: dict[str, pd.DataFrame], figures: Iterable[tuple[str, Figure]]) -> None:
    """Tables as CSV and figures as PNG and SVG, each whole or as it was before, and say which."""
    from subspace.study.reports.figures import images
    from subspace.study.reports.write import csv, put

    with storage(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for each, table in tables.items():
            put(folder / f"{each}.csv", csv(table))
            typer.echo(f"{folder / each}.csv")
        for number, (title, figure) in enumerate(figures, 1):
            for kind in ("png", "svg"):
                put(folder / f"{name}-{number}.{kind}", images.saved(figure, kind))
            typer.echo(f"{folder / name}-{number}.png  {title}")
