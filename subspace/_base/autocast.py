"""Autocast, and where it must not reach."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor


def in_autocast(x: Tensor) -> bool:
    """Whether autocast is on where x is."""
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """A block without autocast where x is."""
    return torch.autocast(x.device.type, enabled=False) if in_autocast(x) else contextlib.nullcontext()
