"""The targets, one a line: what is measured, [its quartiles], the target, and ok or MISS; in under two minutes.

Each mode runs in a process of its own: with the compiled kernels, where they are there, and by wheels only.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.report import stamp
from benchmarks.targets import GROUPS, Group, Target
from benchmarks.timing import Spread
from subspace.products.native import load

MODES = ("native", "wheels-only")


def bound(target: Target, mode: str) -> float | None:
    """The target in a mode."""
    return target.native if mode == "native" else target.wheels_only


def met(target: Target, value: float, mode: str) -> bool:
    """Whether the target is met: of "x" at least, of every other unit at most."""
    limit = bound(target, mode)
    return limit is None or (value >= limit if target.unit == "x" else value <= limit)


def line(target: Target, value: Spread, mode: str) -> str:
    """A measured target in words."""
    at, verdict = (">=" if target.unit == "x" else "<="), ("ok" if met(target, value.median, mode) else "MISS")
    measured = f"{value.median:8.3g} {target.unit}".ljust(18) + f"[{value.low:.3g}, {value.high:.3g}]".ljust(18)
    return f"{mode:12}{target.name:54}{measured}{at} {bound(target, mode):<7g}{verdict}"


def run(groups: Sequence[Group], mode: str) -> int:
    """Measure and print the groups that have a target in this mode; returns how many targets are missed."""
    misses = 0
    for group in groups:
        targets = [target for target in group.targets if bound(target, mode) is not None]
        values = group.measure() if targets else {}
        for target in targets:
            print(line(target, values[target.key], mode), flush=True)
            misses += not met(target, values[target.key].median, mode)
    return misses


def main() -> int:
    """Run each mode in a process of its own; the exit status is 0 if no target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads torch computes with")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, help="with or without the compiled kernels")
    parser.add_argument("--child", choices=MODES, help=argparse.SUPPRESS)
    parser.add_argument("--wheels-only", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.child == "native" and not load.is_available():
        print(f"native      {load.status()}")
        return 0
    if args.child:
        return min(run(GROUPS, args.child), 1)
    print("  ".join(f"{name}: {value}" for name, value in stamp().items()), flush=True)
    command = [sys.executable, "-m", "benchmarks.quick", "--threads", str(args.threads), "--child"]
    root = Path(__file__).parent.parent
    codes = [
        subprocess.call([*command, mode, *["--wheels-only"] * (mode == "wheels-only")], cwd=root) for mode in args.modes
    ]
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
