"""`subspace jacobian`: the singular values of a study's networks."""

from __future__ import annotations

from subspace.study.cli import options
from subspace.study.cli.analysis import read_records, write_analysis
from subspace.study.cli.options import NOTHING, OUT, Out


def jacobian(asked: options.Asked = NOTHING, out: Out = OUT) -> None:
    """Singular values of the input-output Jacobian, at the start and after training: a long table and figures.

    STUDY is talk/jacobian unless it is given. Trains nothing: subspace run comes first.
    """
    from subspace.study.reports.analyses.jacobian import rank_figure, spectra_figures, spectra_summary, spectra_table
    from subspace.study.results.summary import summary_table
    from subspace.study.results.tables import runs_table

    with options.sentences():
        folder, records = read_records(asked, "talk/jacobian", out)
        table = spectra_table(records)
        if not len(table):
            raise ValueError("train.jacobian must be at least 1 in the study, got 0")
        summary = spectra_summary(table)
        ranks = (
            "Test accuracy against the Jacobian at the start",
            rank_figure(summary, summary_table(runs_table(records))),
        )
        tables = {"jacobian": table, "jacobian-summary": summary}
        write_analysis(folder, "jacobian", tables, [*spectra_figures(table), ranks])
