"""Runs in the processes that torchrun started, one run after another, each trained by all of them (`distributed.team`).

Process 0 carries out the study and alone touches the store; the others follow it. A run is handed over to them when
process 0 begins to train it.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from functools import cache

import torch.distributed as dist

from subspace.study.distributed import rendezvous as world
from subspace.study.execution.execute import Task, prepare
from subspace.study.execution.launchers import Job
from subspace.study.execution.launchers.inline import Inline
from subspace.study.spec.study import Run
from subspace.study.training.run import Nowhere, train


class Torchrun(Inline):
    """One run at a time, in this process and those that follow it."""

    def submit(self, runs: Sequence[Run]) -> list[Job]:
        """Do them. ValueError for a run that needs another number of processes."""
        for run in runs:
            world.check(run.train.processes)
        return super().submit(runs)


@cache
def begin() -> None:
    """To be called before anything else: process 0 goes on alone, and the others `follow` it and then exit."""
    if world.size() == 1:
        return
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    atexit.register(part)
    if world.rank() > 0:
        follow()
        sys.exit()


def part() -> None:
    """Let the other processes go, however this one ends."""
    if world.rank() == 0:
        world.dismiss()
    if dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()


def follow(task: Task = train) -> None:
    """Train every run that process 0 hands over, until it says that there are no more.

    What a run raises is process 0's to record; it is printed here, as it may be this process's alone.
    """
    while run := world.handed_over():
        prepare(run)
        try:
            task(run, Nowhere())
        except Exception:
            traceback.print_exc()


def end_with(parent: int) -> None:
    """End this process when torchrun, its parent, has gone, be it killed: what is under way can be resumed."""
    while os.getppid() == parent:
        time.sleep(0.1)
    os._exit(1)
