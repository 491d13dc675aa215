"""What a study tells while it runs: to progress bars, trackers and your own code."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from subspace.study.results.store import Record
from subspace.study.spec.study import Run


class Callback:
    """Called in the process that called the study; every method does nothing unless it is overridden.

    What a callback raises stops the study; no result is lost.
    """

    def expect(self, runs: Sequence[Run]) -> None:
        """Called once, before anything is trained, with the runs that have no result yet."""

    def begin(self, run: Run) -> None:
        """Called when a run is submitted; again on a retry."""

    def epoch(self, run: Run, figures: dict[str, Any]) -> None:
        """Called after an epoch, with an element of the record's `epochs`; also of the rounds that choose U."""

    def end(self, run: Run, record: Record) -> None:
        """Called when a run has ended, well or not."""

    def say(self, text: str) -> None:
        """Called with a sentence for people: what was set aside, what another process trains."""

    def close(self) -> None:
        """Called when the study has ended or was interrupted."""


class Callbacks(Callback):
    """Several callbacks as one, called in turn; all of them are closed, whatever one of them raises."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = callbacks

    def expect(self, runs: Sequence[Run]) -> None:
        self._each("expect", runs)

    def begin(self, run: Run) -> None:
        self._each("begin", run)

    def epoch(self, run: Run, figures: dict[str, Any]) -> None:
        self._each("epoch", run, figures)

    def end(self, run: Run, record: Record) -> None:
        self._each("end", run, record)

    def say(self, text: str) -> None:
        self._each("say", text)

    def _each(self, name: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, name)(*arguments)

    def close(self) -> None:
        with ExitStack() as stack:
            for callback in self.callbacks:
                stack.callback(callback.close)
