"""The processes that torchrun started: how many there are, and the word that they leave for each other.

They leave it in the store that torchrun keeps for them: process 0 hands over a run when it begins to train it, so that
the others train it too, and says when there will be no more.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from functools import cache
from typing import Any, TypeAlias

import torch.distributed as dist

from subspace.study.spec.study import Run

Store: TypeAlias = Any  # torch.distributed's, which it does not declare
FOREVER = timedelta(days=1000)
RUNS: list[Store] = []  # where they leave word about the runs that they trained together so far


def size() -> int:
    """How many processes torchrun started, this one included; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """Which of them this is, from 0."""
    return int(os.environ.get("RANK", 0))


def check(processes: int) -> None:
    """ValueError, with the command to give, unless there are so many processes."""
    if processes != size():
        launch = f"torchrun --nproc-per-node {processes} -m subspace.study.cli" if processes > 1 else "subspace"
        raise ValueError(
            f"processes must be as many as were started, {size()}, got {processes}: start it as {launch} study ..."
        )


@contextmanager
def with_torchrun() -> Iterator[None]:
    """SystemExit where torchrun has gone in the block, as no run has failed by that."""
    try:
        yield
    except dist.DistError as error:
        raise SystemExit(f"stopped, as torchrun has gone: {error}") from error


def hand_over(run: Run) -> None:
    """Say, in process 0, that all are to join it in training this run."""
    _word().set("run", json.dumps(asdict(run)))


def dismiss() -> None:
    """Say, in process 0, that there will be no more runs."""
    _word().set("run", "")


def handed_over() -> Run | None:
    """The next run, in the other processes, as soon as it is handed over; None when there will be no more."""
    word = _word()
    word.wait(["run"], FOREVER)
    text = word.get("run").decode()
    return Run.parse(json.loads(text)) if text else None


def joined() -> Store:
    """Where they leave word about the run that was handed over; to be called once for every run, in all of them."""
    RUNS.append(_word())
    return RUNS[-1]


def _word() -> Store:
    return dist.PrefixStore(f"run {len(RUNS)}", _store())  # type: ignore[attr-defined]


@cache
def _store() -> Store:
    return next(dist.rendezvous("env://"))[0]  # type: ignore[attr-defined]
