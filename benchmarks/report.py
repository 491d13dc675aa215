"""What every command leaves: a table, pictures, and the command, machine and versions that made them."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure

from benchmarks.timing import Times, ratio, spread
from subspace import products
from subspace.study.execution.environment import environment

Row = dict[str, object]


def options(description: str | None, rounds: int = 9) -> argparse.ArgumentParser:
    """The options that every command has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads torch computes with")
    parser.add_argument("--rounds", type=int, default=rounds, help="rounds, in each of which every variant runs once")
    parser.add_argument("--seconds", type=float, default=60.0, help="after which no further round of a case starts")
    parser.add_argument("--wheels-only", action="store_true", help="without the compiled kernels")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="seconds of the process on all cores, for a busy machine: 1 thread",
    )
    parser.add_argument("--out", type=Path, help="folder for the table, the pictures and the stamp")
    return parser


def stamp() -> dict[str, object]:
    """The command, the machine and the versions."""
    git = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(git, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()
    return {
        "command": " ".join(["python -m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        **environment(),
        "scipy": version("scipy"),
        "cores": os.cpu_count(),
        "commit": commit or "unknown",
        "compiled kernels": products.status(),
    }


def rows(times: Times, over: Sequence[str], **case: object) -> list[Row]:
    """A row for each variant of a case: seconds, and how many times faster than those in `over` it is."""
    table: list[Row] = []
    for name, seconds in times.items():
        median, low, high = spread(seconds)
        row = {**case, "variant": name, "rounds": len(seconds), "seconds": median, "low": low, "high": high}
        for other in over:
            if other in times:
                row |= dict(
                    zip((f"over {other}", f"{other} low", f"{other} high"), ratio(times, other, name), strict=True)
                )
        table.append(row)
    return table


def show(row: Row) -> None:
    """Print a row of `rows` on one line: the case, milliseconds with their quartiles, and the ratios."""
    case = list(row.values())[: list(row).index("rounds")]
    milliseconds = [f"{1e3 * float(str(row[name])):.4g}" for name in ("seconds", "low", "high")]
    ratios = [f"{value:.3g}x {name[5:]}" for name, value in row.items() if name.startswith("over ")]
    time = "{} ms [{}, {}]".format(*milliseconds)
    print("  ".join([*map(str, case), time, *ratios]), flush=True)


def write(out: Path | None, table: Sequence[Row], **figures: Figure) -> None:
    """Write table.csv, a picture for each figure, and stamp.json, where a folder was asked for."""
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(table).to_csv(out / "table.csv", index=False, float_format="%.4g")
    for name, figure in figures.items():
        figure.savefig(out / f"{name}.png", dpi=160)
    (out / "stamp.json").write_text(json.dumps(stamp(), indent=2) + "\n")
