"""A worker process: it brings the runs that come down its pipe to their records, one after another."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from pathlib import Path

from subspace.study.execution.execute import Task, execute
from subspace.study.execution.launchers.interrupts import ignored
from subspace.study.results.store import StorageError
from subspace.study.spec.study import Run
from subspace.study.training.run import train


class Worker:
    """A process with its own interpreter: `start` a run, and `result` once `pipe` is ready."""

    def __init__(self, folder: Path, task: Task = train) -> None:
        context = get_context("spawn")  # a forked torch may hang in its threads
        self.pipe, end = context.Pipe()
        self.process = context.Process(target=work, args=(end, folder, task), daemon=True)
        with ignored(signal.SIGINT):  # Ctrl-C reaches every process of the terminal: only the parent is to answer
            self.process.start()
        end.close()  # so that the pipe ends with the process

    def start(self, run: Run) -> None:
        """Hand over a run; the process must have none."""
        with suppress(BrokenPipeError):  # a dead worker is found when its result is asked for
            self.pipe.send(run)

    def result(self) -> str:
        """What became of the run: as `execute`; waits for it. ChildProcessError if the process died, with the cause."""
        try:
            outcome: str | StorageError = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode or 0
            cause = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
            raise ChildProcessError(f"the worker process died: {cause}") from None
        if isinstance(outcome, StorageError):
            raise outcome
        return outcome

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        self.process.terminate()
        self.process.join()
        self.pipe.close()


def work(pipe: Connection, folder: Path, task: Task) -> None:
    """The body of a worker: until the parent has gone, or terminates it."""
    threading.Thread(target=follow_parent, daemon=True).start()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            run = pipe.recv()
            try:
                pipe.send(execute(run, folder, task))
            except StorageError as error:
                pipe.send(StorageError(str(error)))


def follow_parent() -> None:
    """End with the parent, even where it was killed: what is under way can be resumed by whoever comes next."""
    if parent := parent_process():
        parent.join()
        os._exit(1)
