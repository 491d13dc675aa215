"""`subspace trainability`: when training is possible."""

from __future__ import annotations

from typing import Annotated

import typer

from subspace.study.cli import options
from subspace.study.cli.analysis import read_records, write_analysis
from subspace.study.cli.options import NOTHING, OUT, Out

Accuracy = Annotated[float, typer.Option(help="the training accuracy to reach, in (0, 1]")]


def trainability(asked: options.Asked = NOTHING, accuracy: Accuracy = 0.9, out: Out = OUT) -> None:
    """When is training possible: a heat map over density and depth for every method, and its table.

    STUDY is talk/trainability unless it is given. Trains nothing: subspace run comes first.
    """
    from subspace.study.reports.analyses.trainability import heat_maps, trainability_table

    with options.sentences():
        folder, records = read_records(asked, "talk/trainability", out)
        table = trainability_table(records, accuracy)
        write_analysis(folder, "trainability", {"trainability": table}, heat_maps(table, accuracy))
