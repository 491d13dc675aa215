"""The most memory that a training step holds, measured on real steps.

Counted: the model (parameters, gradients, buffers, what d and U keep), the optimizer's state, the batch, activations
and temporaries. On a CPU that is what torch's allocator has given out for them and what numpy and Python take
meanwhile, the sum of their two peaks; on a CUDA device, what torch's allocator of that device has given out. Not
counted: what else the process holds, as the data set, other networks, Python and torch themselves; what
DistributedDataParallel keeps; the tiles of the compiled kernels, some kilobytes a thread.

The steps compute what they would have anyway, a little slower: torch's profiler and tracemalloc watch the CPU.
"""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.profiler import profile
from torch.optim import Optimizer

Blocks: TypeAlias = dict[int, int]  # address -> bytes


class Peak:
    """Enter `step` around every step of a training: it measures those in `steps`, and no other costs anything.

    bytes: the most that was held so far. steps: from 0; the first one makes the optimizer's state and tables that are
    kept, and the second has them beside its activations. held: the model, the optimizer and all else that is there
    beside them. The device is the model's.

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
        self.blocks: Blocks = {}
        self.beside: int | None = None  # bytes on a CUDA device that are none of ours

    @contextmanager
    def step(self, *batch: Tensor) -> Iterator[None]:
        """Around one step, which sets gradients to None first: one that is measured has none at the start."""
        self.entered += 1
        if self.entered - 1 not in self.steps:
            yield
            return
        for gradient in _no_gradients(self.held):
            self.blocks.pop(gradient, None)
        there = list(tensors((*self.held, *batch)))
        device = next((tensor.device for tensor in there), torch.device("cpu"))
        blocks = _blocks(tensor for tensor in there if tensor.device == device)
        with self._cuda(device, blocks) if device.type == "cuda" else self._cpu(blocks):
            yield
        for address in _blocks(batch):
            self.blocks.pop(address, None)

    @contextmanager
    def _cuda(self, device: torch.device, blocks: Blocks) -> Iterator[None]:
        if self.beside is None:
            self.beside = torch.cuda.memory_allocated(device) - sum(blocks.values())
        torch.cuda.reset_peak_memory_stats(device)
        yield
        self.bytes = max(self.bytes, torch.cuda.max_memory_allocated(device) - self.beside)

    @contextmanager
    def _cpu(self, blocks: Blocks) -> Iterator[None]:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it writes to stderr that it starts and stops
        with profile(profile_memory=True) as profiled, _traced() as of_python:
            yield
        of_torch = peak(self.blocks | blocks, _allocations(profiled), after=self.blocks)
        self.bytes = max(self.bytes, of_torch + of_python[0])


def tensors(things: Iterable[object]) -> Iterator[Tensor]:
    """Every tensor that modules, optimizers, tensors and containers of them hold; some more than once."""
    for thing in things:
        if isinstance(thing, Tensor):
            yield thing
        elif isinstance(thing, nn.Module):
            for module in thing.modules():
                yield from tensors(value for value in vars(module).values() if not isinstance(value, nn.Module))
        elif isinstance(thing, Optimizer):
            yield from tensors(thing.state.values())
        elif isinstance(thing, dict):
            yield from tensors(value for value in thing.values() if not isinstance(value, nn.Module))
        elif isinstance(thing, list | tuple):
            yield from tensors(value for value in thing if not isinstance(value, nn.Module))


def peak(blocks: Blocks, events: Iterable[tuple[int, int]], after: Blocks) -> int:
    """The most bytes at once of these blocks and what the events (address, bytes; negative: released) make of them.

    after: becomes the blocks at the end. A release of what is no block counts nothing.

    >>> peak({1: 10}, [(2, 5), (7, -100), (1, -10), (3, 8)], after={})
    15
    """
    there = dict(blocks)
    live = most = sum(there.values())
    for address, size in events:
        live -= there.pop(address, 0)
        if size > 0:
            there[address] = size
            live += size
        most = max(most, live)
    after.clear()
    after.update(there)
    return most


def _blocks(given: Iterable[Tensor]) -> Blocks:
    storages = (tensor.untyped_storage() for tensor in given if not tensor.is_meta)
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def _no_gradients(things: Iterable[object]) -> list[int]:
    """Set those of the modules to None; the addresses they had. torch would not see them go."""
    parameters = [p for thing in things if isinstance(thing, nn.Module) for p in thing.parameters()]
    addresses = list(_blocks(p.grad for p in parameters if p.grad is not None))
    for parameter in parameters:
        parameter.grad = None
    return addresses


@contextmanager
def _traced() -> Iterator[list[int]]:
    """A list that has, at the end, the most bytes that numpy and Python came to hold meanwhile."""
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


def _allocations(profiled: Any) -> list[tuple[int, int]]:
    """(address, bytes) of every CPU allocation, with negative bytes of every release, in their order."""
    waiting, found = list(profiled.kineto_results.experimental_event_tree()), []
    while waiting:
        event = waiting.pop()
        waiting += event.children
        if event.tag.name == "Allocation" and event.extra_fields.device.type == "cpu":
            found.append((event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size))
    return [(address, size) for _, address, size in sorted(found, key=lambda event: event[0])]
