"""The tables of a study, from which all of its report is made."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from subspace.study.reports.formats import format_size
from subspace.study.results.summary import setting
from subspace.study.spec.study import SIZES


class Report(NamedTuple):
    """The tables of a study: its runs, their means over seeds, methods in pairs and at equal cost; and their folder."""

    runs: pd.DataFrame
    table: pd.DataFrame
    compared: pd.DataFrame
    equal: dict[str, pd.DataFrame]
    folder: Path


def describe_run(run: pd.Series) -> str:
    """A row of the runs table in words."""
    asked = [f"{name} {format_size((name, run[name]))}" for name in SIZES if pd.notna(run[name])]
    return ", ".join([setting(run), run["label"], *asked, f"seed {run['seed']}"])


def csv(table: pd.DataFrame) -> bytes:
    """A table as CSV, numbers in full."""
    return table.to_csv(index=False, lineterminator="\n").encode()
