"""Live bars: one over the grid with the time left, and under it one for each run that is being trained."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Column

from subspace.study.entries.words import printable
from subspace.study.execution.progress import Lines
from subspace.study.results.store import Record
from subspace.study.spec.study import Run

BAR, COUNT, TIME = 20, 14, 10  # columns


def in_notebook() -> list[Lines]:
    """What a study shows in a notebook: bars where it has widgets, else lines; nothing anywhere else."""
    if not Console().is_jupyter:
        return []
    if find_spec("ipywidgets"):
        return [LiveProgress(Console())]
    return [Lines(Console(force_jupyter=False, width=100, color_system=None))]


class LiveProgress(Lines):
    """For a terminal: runs that end well only move the bar, failures stay as lines above it."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=BAR),
            TextColumn("{task.fields[count]}", table_column=Column(no_wrap=True, min_width=COUNT)),
            TimeRemainingColumn(),
        )
        self.bars = Bars(*columns, console=console, speed_estimate_period=120, transient=True)
        self.tasks: dict[Run, TaskID] = {}
        self.epochs: dict[Run, int] = {}

    def expect(self, runs: Sequence[Run]) -> None:
        super().expect(runs)
        longest = 2 + max((len(printable(str(run))) for run in runs), default=0)
        self.width = min(longest, self.console.width - BAR - COUNT - TIME)  # so that the bars stay where they are
        self.total = self.bars.add_task(f"{'study':{self.width}}", total=self.cost, count=f"0/{len(runs)} runs")
        self.bars.start()

    def begin(self, run: Run) -> None:
        if run not in self.tasks:
            name = f"  {printable(str(run))}"
            name = name if len(name) <= self.width else name[: self.width - 1] + "…"
            self.tasks[run] = self.bars.add_task(name, total=run.epochs, count="starting")

    def epoch(self, run: Run, figures: dict[str, Any]) -> None:
        self.epochs[run] = epochs = figures["epoch"]
        self.bars.update(self.tasks[run], completed=epochs, count=f"epoch {epochs}/{run.epochs}")
        self._move()

    def end(self, run: Run, record: Record) -> None:
        if run in self.tasks:
            self.bars.remove_task(self.tasks.pop(run))
        self.epochs.pop(run, None)
        super().end(run, record)
        self._move()

    def show(self, text: str, failed: bool) -> None:
        if failed:
            self.say(text)

    def close(self) -> None:
        self.bars.stop()

    def _move(self) -> None:
        begun = sum(run.cost * epochs / run.epochs for run, epochs in self.epochs.items())
        self.bars.update(self.total, completed=self.cost - self.left + begun, count=f"{self.done}/{self.runs} runs")
