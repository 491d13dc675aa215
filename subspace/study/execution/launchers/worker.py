"""A worker process: it trains the runs that come down its pipe, one after another."""

from __future__ import annotations

import signal
import threading
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from subspace.study.execution.execute import Task, execute
from subspace.study.results.disk import StorageError
from subspace.study.spec.study import Run
from subspace.study.training.processes import end_with_parent, ignored
from subspace.study.training.run import train


class Worker:
    """A process with its own interpreter: `start` a run, and ask for its `result` once `pipe` is ready.

    method: how the process is started; a forked torch may hang in its threads.
    """

    def __init__(self, folder: Path, task: Task = train, method: str = "spawn") -> None:
        context = get_context(method)
        self.pipe, end = context.Pipe()
        # not a daemon: it may start the processes of a run, and ends with this one all the same
        self.process = context.Process(target=work, args=(end, folder, task))  # type: ignore[attr-defined]
        with ignored(signal.SIGINT):  # Ctrl-C reaches every process of the terminal: only the parent is to answer
            self.process.start()
        end.close()  # so that the pipe ends with the process

    def start(self, run: Run) -> None:
        """Send a run; the process must have none."""
        with suppress(BrokenPipeError):  # a dead worker is found when its result is asked for
            self.pipe.send(run)

    def result(self) -> str:
        """What `execute` returned or raised; waits for it. ChildProcessError with the cause if the process died."""
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
    """The body of a worker, until its parent ends or terminates it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            pipe.send(executed(pipe.recv(), folder, task))


def executed(run: Run, folder: Path, task: Task = train) -> str | StorageError:
    """What `execute` returns, or the StorageError that it raises as a value that can be pickled."""
    try:
        return execute(run, folder, task)
    except StorageError as error:
        return StorageError(str(error))
