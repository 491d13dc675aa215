"""Times of several calls, interleaved in one process, so that a machine that slows down slows all of them."""

from __future__ import annotations

import gc
import itertools
import math
import random
import sys
from collections.abc import Callable, Iterable, Mapping
from time import perf_counter, process_time
from typing import NamedTuple

import numpy as np
import torch

Call = Callable[[], object]
Times = dict[str, list[float]]  # seconds per call: one entry a round

SHORTEST = 0.005  # seconds that a sample lasts at least: shorter calls are repeated within it


class Spread(NamedTuple):
    """The median and the quartiles."""

    median: float
    low: float
    high: float


def spread(values: Iterable[float]) -> Spread:
    """The median and the quartiles of what was measured in each round."""
    low, median, high = np.quantile(list(values), [0.25, 0.5, 0.75])
    return Spread(float(median), float(low), float(high))


def interleave(calls: Mapping[str, Call], rounds: int = 9, seconds: float = 60.0, warm: bool = True) -> Times:
    """Time every call once a round, in a new random order each round, after one or two calls to warm up.

    Stops after `rounds`, or earlier, but not before the second, once `seconds` have passed. With warm=False, for long
    calls that have been warmed up before, the first is timed already.
    """
    repeats = {name: max(1, math.ceil(SHORTEST / warmed(call))) if warm else 1 for name, call in calls.items()}
    times: Times = {name: [] for name in calls}
    order, shuffle = list(calls), random.Random(0).shuffle
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = perf_counter()
        for done in range(rounds):
            if done >= 2 and perf_counter() - start > seconds:
                break
            shuffle(order)
            for name in order:
                times[name].append(sample(calls[name], repeats[name]))
    finally:
        if collecting:
            gc.enable()
    return times


def warmed(call: Call) -> float:
    """Seconds of the first call or, where that is quick, of the second, which finds everything set up."""
    first = sample(call, 1)
    return sample(call, 1) if first < 0.2 else first


def sample(call: Call, repeats: int) -> float:
    """Seconds per call; where there is a GPU by its own events."""
    if torch.cuda.is_available():
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for _ in range(repeats):
            call()
        last.record()
        last.synchronize()
        return first.elapsed_time(last) / 1000 / repeats
    start = now()
    for _ in range(repeats):
        call()
    return (now() - start) / repeats


def now() -> float:
    """Seconds; with --processor-time those of this process on all cores, which other work does not lengthen as much."""
    return process_time() if "--processor-time" in sys.argv else perf_counter()


def ratio(times: Times, slow: str, fast: str) -> Spread:
    """How many times faster `fast` is than `slow`, round by round."""
    return spread(a / b for a, b in zip(times[slow], times[fast], strict=True))


def best(times: Times, names: Iterable[str]) -> str:
    """The name with the smallest median."""
    return min(names, key=lambda name: spread(times[name]).median)


def captured(call: Call) -> Call:
    """The call as a CUDA graph of its own, which is launched as a whole: without Python, and without its launches.

    What it has to set up is done before, by three calls of it on another stream.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def in_turns(calls: Iterable[Call]) -> Call:
    """Every time the next of the calls, and after the last the first."""
    turns = itertools.cycle(list(calls))
    return lambda: next(turns)()
