"""A worker process: it trains the runs that come down its pipe, one after another, and sends back what it measured."""

from __future__ import annotations

import os
import signal
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection

import torch

from subspace.study.config import Run
from subspace.study.environment import environment
from subspace.study.interrupts import ignored
from subspace.study.store import Record
from subspace.study.train import train

Task = Callable[[Run, Callable[[int], None]], dict[str, object]]  # like `train`: a run, a report -> metrics


class Worker:
    """A process with its own interpreter and one torch thread: `start` a run, then `receive` when the pipe is ready."""

    def __init__(self, task: Task = train) -> None:
        context = get_context("spawn")  # a forked torch may hang in its threads
        self.pipe, end = context.Pipe()
        self.process = context.Process(target=work, args=(end, task), daemon=True)
        with ignored(signal.SIGINT):  # Ctrl-C reaches every process of the terminal: only the parent is to answer
            self.process.start()
        end.close()  # so that the pipe ends with the process

    def start(self, run: Run) -> None:
        """Hand over a run; the process must have none."""
        with suppress(BrokenPipeError):  # a dead worker is found at the next message
            self.pipe.send(run)

    def receive(self) -> int | Record:
        """The next message: the epochs done, or the record of the run, be it that the process died."""
        try:
            message: int | Record = self.pipe.recv()
        except (EOFError, OSError):
            return self.post_mortem()
        return message

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        self.process.terminate()
        self.process.join()
        self.pipe.close()

    def post_mortem(self) -> Record:
        """The record of the run that a worker died of."""
        self.process.join()
        code = self.process.exitcode or 0
        cause = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        return outcome(None, f"the worker process died: {cause}")


def work(pipe: Connection, task: Task) -> None:
    """The body of a worker: until the parent has gone, or terminates it."""
    torch.set_num_threads(1)
    os.environ.setdefault("SUBSPACE_COSTS", "typical")  # structured layers take the same routes on every machine
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            pipe.send(record(pipe.recv(), pipe.send, task))


def record(run: Run, report: Callable[[int], None], task: Task = train) -> Record:
    """Do a run and say what happened: an exception ends the run, not the study."""
    metrics = error = trace = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        try:
            metrics = task(run, report)
        except Exception as exception:
            error, trace = f"{type(exception).__name__}: {exception}", traceback.format_exc()
    return outcome(metrics, error, trace, [str(warning.message) for warning in caught])


def outcome(
    metrics: dict[str, object] | None, error: str | None, trace: str | None = None, warned: Sequence[str] = ()
) -> Record:
    """How a run ended in this environment, as `store` keeps it."""
    return {
        "status": "failed" if error else "finished",
        "environment": environment(),
        "metrics": metrics,
        "error": error,
        "traceback": trace,
        "warnings": list(warned),
    }
