"""What is told of a study while it runs: progress bars, trackers and your own."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from subspace.study.results.store import Record
from subspace.study.spec.study import Run


class Callback:
    """Told in the process that called the study, in this order; every method does nothing unless it is overridden.

    What a callback raises stops the study, of which nothing is lost.
    """

    def expect(self, runs: Sequence[Run]) -> None:
        """Once, before anything is trained: the runs that are missing."""

    def begin(self, run: Run) -> None:
        """A run has been handed to whoever trains it; more than once if it is tried again."""

    def epoch(self, run: Run, figures: dict[str, Any]) -> None:
        """A run has done an epoch: an element of the record's `epochs`, and of the rounds that choose U as well."""

    def end(self, run: Run, record: Record) -> None:
        """A run has ended, well or not."""

    def say(self, text: str) -> None:
        """A sentence for people: what was set aside, what waits for another process."""

    def close(self) -> None:
        """The study has ended or was interrupted."""


class Callbacks(Callback):
    """Several as one, told in turn; all are closed, whatever one of them raises."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = callbacks

    def expect(self, runs: Sequence[Run]) -> None:
        for callback in self.callbacks:
            callback.expect(runs)

    def begin(self, run: Run) -> None:
        for callback in self.callbacks:
            callback.begin(run)

    def epoch(self, run: Run, figures: dict[str, Any]) -> None:
        for callback in self.callbacks:
            callback.epoch(run, figures)

    def end(self, run: Run, record: Record) -> None:
        for callback in self.callbacks:
            callback.end(run, record)

    def say(self, text: str) -> None:
        for callback in self.callbacks:
            callback.say(text)

    def close(self) -> None:
        with ExitStack() as stack:
            for callback in self.callbacks:
                stack.callback(callback.close)
