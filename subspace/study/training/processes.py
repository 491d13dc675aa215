"""Start the processes that train one run together; torch.multiprocessing watches over them.

Where one fails, torch ends the others, and the run fails with the error of the first. They end with the process that
started them, which alone stores anything: process 0 sends it the state after every epoch, and the result.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import Pipe, parent_process
from multiprocessing.connection import Connection
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessException, spawn

from subspace.study.spec.study import Run
from subspace.study.training.state import State, StateStore, UnfitState
from subspace.study.training.team import Team

Train: TypeAlias = Callable[[Run, StateStore, Team], dict[str, Any]]
LOOK = 0.05  # seconds between two looks at the processes


class Sender(StateStore):
    """The states of a run in one of its processes: process 0 sends them to where they are stored."""

    def __init__(self, state: State | None, pipe: Connection | None) -> None:
        self.state, self.pipe = state, pipe

    def load(self) -> State | None:
        return self.state

    def save(self, state: State) -> None:
        if self.pipe:
            self.pipe.send_bytes(pickle.dumps(state))


def train_alone(train: Train, run: Run, states: StateStore) -> dict[str, Any]:
    """Call train(run, states, team) in this process."""
    return train(run, states, Team())


def train_together(train: Train, run: Run, states: StateStore) -> dict[str, Any]:
    """Call train(run, states, team) in `run.train.processes` new processes; return what process 0 returns.

    Raises RuntimeError with the error of the process that failed first, UnfitState, and what storing a state raises.
    """
    logging.getLogger(spawn.__module__).setLevel(logging.ERROR)  # it says which processes it ends
    meeting: Any = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    receiver, pipe = Pipe(duplex=False)
    with ignored(signal.SIGINT):  # Ctrl-C reaches every process of the terminal: only this one is to answer
        arguments = train, run, pickle.dumps(states.load()), pipe, meeting.port
        started: Any = spawn(_take_part, arguments, run.train.processes, join=False)  # type: ignore[no-untyped-call]
    pipe.close()
    try:
        ended = False
        while not ended:
            ended = started.join(LOOK)
            while (message := _received(receiver)) is not None:
                if "model" in message:
                    states.save(message)
                else:
                    result: dict[str, Any] = message
        return result
    except ProcessException as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        if UnfitState.__name__ in lines[-1]:
            raise UnfitState(lines[-1].partition(": ")[2]) from error
        raise RuntimeError(f"process {error.error_index}: {lines[-1]}") from error
    finally:
        for process in started.processes:
            process.kill()
            process.join()


def _received(receiver: Connection) -> Any:
    try:
        return pickle.loads(receiver.recv_bytes()) if receiver.poll() else None
    except EOFError:  # every process has ended
        return None


def _take_part(rank: int, train: Train, run: Run, state: bytes, pipe: Connection, port: int) -> None:
    """The body of each process."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    team = Team(run.train.processes, rank, torch.device(run.train.device).type == "cuda")
    if team.cuda:
        torch.cuda.set_device(rank)
    torch.set_num_threads(run.train.threads)
    meeting: Any = dist.TCPStore("localhost", port, is_master=False)  # type: ignore[attr-defined]
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if team.cuda else "gloo", store=meeting, rank=rank, world_size=team.size
    )
    result = train(run, Sender(pickle.loads(state), None if rank else pipe), team)
    if rank == 0:
        pipe.send_bytes(pickle.dumps(result))
    dist.destroy_process_group()


@contextmanager
def ignored(number: signal.Signals) -> Iterator[None]:
    """Ignore a signal; processes started in the block ignore it for good (exec keeps ignored signals)."""
    if threading.current_thread() is not threading.main_thread():  # Python sets handlers in the main thread only
        yield
        return
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)


def end_with_parent() -> None:
    """End this process with the one that started it, even where that was killed: the run can be resumed."""
    if parent := parent_process():
        parent.join()
        os._exit(1)
