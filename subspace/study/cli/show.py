"""`subspace show`: a study as a file."""

from __future__ import annotations

import typer

from subspace.study.cli import options
from subspace.study.cli.options import NOTHING
from subspace.study.spec import files


def show(asked: options.Asked = NOTHING) -> None:
    """Print the study as TOML, every value of it; nothing that it names is imported."""
    with options.sentences():
        typer.echo(files.toml(options.read_study(asked)), nl=False)
