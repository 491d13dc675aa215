"""`subspace phase`: the phase diagram of success over dim and target."""

from __future__ import annotations

from subspace.study.cli import options
from subspace.study.cli.analysis import read_records, write_analysis
from subspace.study.cli.options import NOTHING, OUT, Out


def phase(asked: options.Asked = NOTHING, out: Out = OUT) -> None:
    """The share of seeds that reach a target, over dim and target: a diagram for every method, and its table.

    STUDY is questions/burn-in unless it is given. Trains nothing: subspace run comes first.
    """
    from subspace.study.reports.analyses.phase import phase_diagrams, phase_table
    from subspace.study.results.tables import runs_table

    with options.sentences():
        folder, records = read_records(asked, "questions/burn-in", out)
        table = phase_table(runs_table(records))
        write_analysis(folder, "phase", {"phase": table}, phase_diagrams(table))
