"""Carrying out a grid: what is finished is skipped, the long runs come first, and a failure stops nothing else.

The parent alone writes results, each as soon as its run ends, so whatever stops a study costs only the runs under way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from multiprocessing.connection import wait

from subspace.study.config import Run
from subspace.study.progress import Progress
from subspace.study.store import Store
from subspace.study.worker import Worker


def unfinished(runs: Iterable[Run], store: Store, progress: Progress) -> list[Run]:
    """The runs without an intact, finished result; damaged files are set aside with a message."""
    missing = []
    for run in runs:
        try:
            record = store.read(run)
        except ValueError as damage:
            progress.say(f"{damage}; set aside as {store.set_aside(run).name}, and run again")
            record = None
        if record is None or record["status"] != "finished":
            missing.append(run)
    return missing


def carry_out(runs: Iterable[Run], store: Store, workers: int, progress: Progress) -> None:
    """Train the runs in worker processes and store every record. Leaves no process behind, interrupted or not."""
    waiting = deque(sorted(runs, key=lambda run: -run.cost))
    crew: list[Worker] = []
    try:
        crew += [Worker() for _ in range(min(workers, len(waiting)))]
        while waiting or any(worker.run for worker in crew):
            for place, worker in enumerate(crew):
                if waiting and worker.run is None:
                    if not worker.process.is_alive():
                        crew[place] = worker = Worker()
                    worker.start(run := waiting.popleft())
                    progress.begin(run)
            for pipe in wait([worker.pipe for worker in crew if worker.run]):
                listen(next(worker for worker in crew if worker.pipe is pipe), store, progress)
    finally:
        for worker in crew:
            worker.stop()


def listen(worker: Worker, store: Store, progress: Progress) -> None:
    """Pass on one message of a worker: the epochs done, or the record of its run."""
    run, message = worker.run, worker.receive()
    assert run is not None
    if isinstance(message, int):
        progress.epoch(run, message)
    else:
        worker.run = None
        store.write(run, message)
        progress.end(run, message)
