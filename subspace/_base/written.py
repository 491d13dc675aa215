"""Notice of what is written in place into a tensor that is computed at every read, and so lost.

Every tensor has a counter of the writes to it, which is that of all its views too: one that has been given another,
empty memory goes on to count, and holds no number of it.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable

import torch
from torch import Tensor

_watched: set[weakref.ref[Tensor]] = set()


def warn_if_written(tensor: Tensor, what: str) -> None:
    """Warn, once the tensor is gone, if it was written to. Writes to its `.data` torch does not count."""
    if torch.compiler.is_compiling() or type(tensor) is not Tensor or _is_traced() or tensor.is_inference():
        return
    counter = tensor.detach()
    counter.data = tensor.new_empty(0)
    _watched.add(weakref.ref(tensor, _said(counter, counter._version, what)))


def _said(counter: Tensor, writes: int, what: str) -> Callable[[weakref.ref[Tensor]], None]:
    def gone(reference: weakref.ref[Tensor]) -> None:
        _watched.discard(reference)
        if counter._version != writes:
            warnings.warn(what, stacklevel=2)

    return gone


def _is_traced() -> bool:
    """Whether torch records, transforms or intercepts what is computed."""
    modes = torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack() > 0
    return bool(modes or torch._C._get_tracing_state())
