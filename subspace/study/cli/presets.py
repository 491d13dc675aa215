"""`subspace presets`: the studies that come with this."""

from __future__ import annotations

import typer

from subspace.study.spec import presets as known


def presets() -> None:
    """Name the studies that come with this, and say what each asks and takes."""
    typer.echo("\n".join(f"{name:36} {says}" for name, says in known.presets().items()))
