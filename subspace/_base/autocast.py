"""Autocast, and where it must not reach."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

# Those that have it, asked for once: it is needed at every product, and not every compiler of torch's can ask.
DEVICES = tuple(d for d in ("cpu", "cuda", "xpu", "mps", "hpu", "mtia", "xla") if torch.amp.is_autocast_available(d))
NOTHING = contextlib.nullcontext()


def in_autocast(x: Tensor) -> bool:
    """Whether autocast is on where x is."""
    if not torch._C._is_any_autocast_enabled():  # asked at every product
        return False
    device = x.device.type
    known = device in DEVICES or device == torch._C._get_privateuse1_backend_name()  # of another package's devices
    return known and torch.is_autocast_enabled(device)


def as_autocast(x: Tensor) -> Tensor:
    """x as autocast, where it is on, would have a product take it."""
    if in_autocast(x) and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(x.device.type))
    return x


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """A block without autocast where x is."""
    return torch.autocast(x.device.type, enabled=False) if in_autocast(x) else NOTHING
