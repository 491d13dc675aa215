"""The commands, put together."""

from __future__ import annotations

import typer

from subspace.study.cli.dimension import dimension
from subspace.study.cli.jacobian import jacobian
from subspace.study.cli.pack import pack
from subspace.study.cli.phase import phase
from subspace.study.cli.plan import plan
from subspace.study.cli.presets import presets
from subspace.study.cli.report import report
from subspace.study.cli.run import run
from subspace.study.cli.show import show
from subspace.study.cli.status import status
from subspace.study.cli.trainability import trainability

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)
for command in (run, plan, status, report, show, presets, jacobian, trainability, dimension, phase, pack):
    app.command()(command)


@app.callback()
def subspace() -> None:
    """Train neural networks in subspaces: every weight as w = d + U theta.

    STUDY is a .toml or .json file or the name of a preset, such as talk/accuracy, then any values of it as KEY=VALUE:
    subspace run talk/accuracy seeds=1 methods=ordinary,dctps train.epochs=5
    """
