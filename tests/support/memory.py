"""What a call takes in memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import torch


def peak_bytes(call: Callable[[], object]) -> int:
    """The most that torch and numpy held during the call: the sum of their two peaks."""
    tracemalloc.start()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    peak_of_numpy = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak + peak_of_numpy
