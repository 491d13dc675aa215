"""What a study shows while it runs: plain lines in a file, a pipe or a log; bars on a terminal (`live`)."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console

from subspace.study.entries.words import duration, printable
from subspace.study.execution.callbacks import Callback
from subspace.study.results.store import Record
from subspace.study.spec.study import Run


def say(console: Console, text: str) -> None:
    """Print a line as it is."""
    console.print(printable(text), markup=False, highlight=False, soft_wrap=True)


class Lines(Callback):
    """One line per run that ends, and per message; no control codes unless the console is a terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def expect(self, runs: Sequence[Run]) -> None:
        self.runs, self.done, self.began = len(runs), 0, time.monotonic()
        self.cost = self.left = sum(run.cost for run in runs)

    def end(self, run: Run, record: Record) -> None:
        self.done += 1
        self.left -= run.cost
        self.show(describe_outcome(run, record), failed=record["status"] == "failed")

    def show(self, text: str, failed: bool) -> None:
        """Show how a run ended."""
        seconds = (time.monotonic() - self.began) * self.left / max(self.cost - self.left, 1e-9)
        self.say(f"{self.done}/{self.runs}  {text}" + (f"  (about {duration(seconds)} left)" if self.left > 0 else ""))

    def say(self, text: str) -> None:
        say(self.console, text)


def describe_outcome(run: Run, record: Record) -> str:
    """A run and how it ended: its test accuracy and time, or its error."""
    if record["status"] == "failed":
        return f"FAILED  {run}: {record['error']}"
    metrics = record["metrics"]
    return f"{run}: {metrics['epochs'][-1]['test_accuracy']:.1%} in {metrics['seconds']:.1f} s"
