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
from subspace.study.train import train
from subspace.study.worker import Task, Worker


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


def carry_out(runs: Iterable[Run], store: Store, workers: int, progress: Progress, task: Task = train) -> None:
    """Train the runs in worker processes and store every record. Leaves no process behind, interrupted or not."""
    waiting = deque(sorted(runs, key=lambda run: -run.cost))
    under_way: dict[int, Run] = {}
    crew: list[Worker] = []
    try:
        crew += [Worker(task) for _ in range(min(workers, len(waiting)))]
        while waiting or under_way:
            for place in range(len(crew)):
                if waiting and place not in under_way:
                    if not crew[place].process.is_alive():
                        crew[place] = Worker(task)
                    under_way[place] = run = waiting.popleft()
                    crew[place].start(run)
                    progress.begin(run)
            ready = wait([crew[place].pipe for place in under_way])
            for place, run in [item for item in under_way.items() if crew[item[0]].pipe in ready]:
                message = crew[place].receive()
                if isinstance(message, int):
                    progress.epoch(run, message)
                else:
                    del under_way[place]
                    store.write(run, message)
                    progress.end(run, message)
    finally:
        for worker in crew:
            worker.stop()
