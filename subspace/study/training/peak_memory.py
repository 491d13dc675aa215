"""The most memory that a training step holds, measured on real steps.

Counted: the model (parameters, gradients, buffers, what d and U keep), the optimizer's state, the batch, activations
and temporaries. On a CPU that is what torch's profiler says of every operation, and what numpy and Python allocate
(tracemalloc), the sum of their two peaks; on a CUDA device, what torch's allocator of that device has given out. Not
counted: what else the process holds, as the data set, other networks, Python and torch themselves; what
DistributedDataParallel keeps; on a CPU, what one operation of torch takes and releases again.

The steps compute what they would have anyway, a little slower.
"""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.autograd.profiler import profile
from torch.optim import Optimizer


class Peak:
    """Enter `step` around every step of a training: it measures those in `steps`, and no other costs anything.

    bytes: the most that was held so far. steps: from 0; the first one makes the optimizer's state and tables that are
    kept, and the second has them as well as its activations. held: the model, the optimizer and all else that counts.
    The device is the model's.

    >>> model = nn.Linear(1000, 1000, bias=False)
    >>> peak = Peak(model, torch.optim.SGD(model.parameters()))
    >>> with peak.step(inputs := torch.ones(1, 1000)):
    ...     model(inputs).sum().backward()
    >>> 8_000_000 < peak.bytes < 8_100_000  # the weight and its gradient
    True
    """

    def __init__(self, *held: nn.Module | Optimizer | Tensor, steps: Collection[int] = (0, 1)) -> None:
        self.held, self.steps = held, frozenset(steps)
        self.bytes = self.entered = 0
        self.kept = 0  # bytes that measured steps have left where nothing of `held` has them, as tables
        self.others: int | None = None  # bytes on a CUDA device that are none of ours

    @contextmanager
    def step(self, *batch: Tensor) -> Iterator[None]:
        """Around one step. One that is measured has no gradients at its start."""
        self.entered += 1
        if self.entered - 1 not in self.steps:
            yield
            return
        for thing in self.held:
            if isinstance(thing, nn.Module):
                thing.zero_grad()  # torch would not see them go
        device = next((tensor.device for tensor in tensors((*self.held, *batch))), torch.device("cpu"))
        with self._on_cuda(device, batch) if device.type == "cuda" else self._on_cpu(batch):
            yield

    @contextmanager
    def _on_cuda(self, device: torch.device, batch: Iterable[Tensor]) -> Iterator[None]:
        if self.others is None:
            self.others = torch.cuda.memory_allocated(device) - nbytes((*self.held, *batch), device)
        torch.cuda.reset_peak_memory_stats(device)
        yield
        self.bytes = max(self.bytes, torch.cuda.max_memory_allocated(device) - self.others)

    @contextmanager
    def _on_cpu(self, batch: Iterable[Tensor]) -> Iterator[None]:
        cpu = torch.device("cpu")
        before = nbytes((*self.held, *batch), cpu)
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it writes to stderr that it starts and stops
        with profile(profile_memory=True) as profiled, traced() as of_python:
            yield
        events = sorted(profiled.function_events, key=lambda event: event.time_range.end)
        held = [*accumulate((event.self_cpu_memory_usage for event in events), initial=0)]
        self.bytes = max(self.bytes, before + self.kept + max(held) + of_python[0])
        self.kept += held[-1] - (nbytes((*self.held, *batch), cpu) - before)


def tensors(things: Iterable[object]) -> Iterator[Tensor]:
    """Every tensor that modules, optimizers, tensors and containers of them hold, and gradients; some twice."""
    for thing in things:
        if isinstance(thing, Tensor):
            yield thing
            if thing.is_leaf and thing.grad is not None:
                yield thing.grad
        elif isinstance(thing, nn.Module):
            for module in thing.modules():
                yield from tensors(value for value in vars(module).values() if not isinstance(value, nn.Module))
        elif isinstance(thing, Optimizer):
            yield from tensors(thing.state.values())
        elif isinstance(thing, dict):
            yield from tensors(value for value in thing.values() if not isinstance(value, nn.Module))
        elif isinstance(thing, list | tuple):
            yield from tensors(value for value in thing if not isinstance(value, nn.Module))


def nbytes(things: Iterable[object], device: torch.device) -> int:
    """The bytes of all tensors that these hold on the device; what they share counts once."""
    storages = (tensor.untyped_storage() for tensor in tensors(things) if tensor.device == device)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@contextmanager
def traced() -> Iterator[list[int]]:
    """A list that has, at the end, the most bytes that numpy and Python allocated in the block."""
    most = [0]
    already = tracemalloc.is_tracing()  # by somebody else, who goes on
    if already:
        tracemalloc.reset_peak()
    else:
        tracemalloc.start()
    start = tracemalloc.get_traced_memory()[0]
    try:
        yield most
    finally:
        most[0] = tracemalloc.get_traced_memory()[1] - start
        if not already:
            tracemalloc.stop()
