"""The most memory that a training step holds, measured on a real one.

Counted: what is alive before the step of the things it is told of, which are the model (parameters, buffers, what d and
U keep), the optimizer's state and the batch; and what is allocated while it lasts, which are gradients, activations and
temporaries: on a CPU by torch's allocator and by numpy and Python, the sum of their two peaks; on a CUDA device by
torch's allocator of that device. Not counted: what else the process holds, as the data set, Python and torch itself;
the buckets of DistributedDataParallel; the tiles of the compiled kernels, some kilobytes a thread.

The step computes what it would have anyway, a little slower: torch's profiler and tracemalloc watch the CPU.
"""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.profiler import profile
from torch.optim import Optimizer


class Peak(AbstractContextManager["Peak"]):
    """Measures the step it is entered around; then `bytes` is the most that was held, and until then 0.

    held: the model and all else that the step needs and that is there before. Enter it where gradients are to be set to
    None, which it does. The device is that of the first tensor held.

    >>> model = nn.Linear(1000, 1000, bias=False)
    >>> with Peak(model) as peak:
    ...     model(torch.ones(1, 1000)).sum().backward()
    >>> 8_000_000 < peak.bytes < 8_100_000  # the weight and its gradient
    True
    """

    bytes = 0

    def __init__(self, *held: nn.Module | Optimizer | Tensor) -> None:
        self.held = held

    def __enter__(self) -> Peak:
        for module in self.held:
            if isinstance(module, nn.Module):
                module.zero_grad()
        tensors = list(held(self.held))
        self.device = next((tensor.device for tensor in tensors), torch.device("cpu"))
        self.before = nbytes(tensor for tensor in tensors if tensor.device == self.device)
        if self.device.type == "cuda":
            self.start = torch.cuda.memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            return self
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it writes to stderr that it starts and stops
        self.traced = tracemalloc.is_tracing()  # by somebody else, who goes on
        self.profile = profile(profile_memory=True)
        self.profile.__enter__()  # type: ignore[no-untyped-call]
        tracemalloc.reset_peak() if self.traced else tracemalloc.start()
        self.start = tracemalloc.get_traced_memory()[0]
        return self

    def __exit__(self, *exception: Any) -> None:
        if self.device.type == "cuda":
            self.bytes = self.before + torch.cuda.max_memory_allocated(self.device) - self.start
            return
        of_numpy = tracemalloc.get_traced_memory()[1] - self.start
        if not self.traced:
            tracemalloc.stop()
        self.profile.__exit__(*exception)  # type: ignore[no-untyped-call]
        self.bytes = self.before + peak(allocations(self.profile)) + of_numpy


def held(things: Iterable[object]) -> Iterator[Tensor]:
    """Every tensor that modules, optimizers, containers of them and tensors hold; some more than once."""
    for thing in things:
        if isinstance(thing, Tensor):
            yield thing
        elif isinstance(thing, nn.Module):
            for module in thing.modules():
                yield from held(value for value in vars(module).values() if not isinstance(value, nn.Module))
        elif isinstance(thing, Optimizer):
            yield from held(thing.state.values())
        elif isinstance(thing, dict):
            yield from held(value for value in thing.values() if not isinstance(value, nn.Module))
        elif isinstance(thing, list | tuple):
            yield from held(value for value in thing if not isinstance(value, nn.Module))


def nbytes(tensors: Iterable[Tensor]) -> int:
    """The bytes of their memory, where several share one counted once."""
    storages = (tensor.untyped_storage() for tensor in tensors if not tensor.is_meta)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def allocations(profiled: Any) -> list[tuple[int, int]]:
    """(address, bytes) of every CPU allocation, and negative bytes of every release, in their order."""
    waiting, found = list(profiled.kineto_results.experimental_event_tree()), []
    while waiting:
        event = waiting.pop()
        waiting += event.children
        if event.tag.name == "Allocation" and event.extra_fields.device.type == "cpu":
            found.append((event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size))
    return [(address, size) for _, address, size in sorted(found, key=lambda event: event[0])]


def peak(sizes: Iterable[tuple[int, int]]) -> int:
    """The most bytes at once of what these allocations make; the release of what was there before counts nothing.

    >>> peak([(1, 10), (2, 5), (7, -100), (1, -10), (3, 8)])
    15
    """
    there: dict[int, int] = {}
    live = most = 0
    for address, size in sizes:
        live += size if size > 0 else -there.pop(address, 0)
        if size > 0:
            there[address] = size
        most = max(most, live)
    return most
