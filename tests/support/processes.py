"""Functions run by several processes of one gloo group, each in a process of its own that lives for many of them."""

from __future__ import annotations

import functools
import multiprocessing
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing import start_processes

Run = Callable[..., list[Any]]
# on Linux their processes have imported what takes seconds; elsewhere a forked torch may fail
QUICK = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
if sys.platform == "linux":
    QUICK.set_forkserver_preload(["torch._dynamo", "subspace.study.training.run"])  # the former for optimizers
start_quickly = functools.partial(start_processes, start_method=QUICK.get_start_method())


@contextmanager
def processes(size: int = 2) -> Iterator[Run]:
    """Give run(function, *arguments): what function(rank, *arguments) returns in each, or raises in the first."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        # a pool for each: torch remembers things of a mesh, which would be another rank's
        pools = [stack.enter_context(ProcessPoolExecutor(1, QUICK)) for _ in range(size)]

        def run(function: Callable[..., Any], *arguments: Any) -> list[Any]:
            store = Path(tempfile.mkdtemp(dir=folder)) / "store"
            parts = [pool.submit(_take_part, rank, size, store, function, arguments) for rank, pool in enumerate(pools)]
            return [part.result(timeout=120) for part in parts]

        yield run


def _take_part(rank: int, size: int, store: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=60)
    )
    try:
        dist.barrier()  # or one could be gone before the other has found it
        return function(rank, *arguments)
    finally:
        dist.destroy_process_group()
