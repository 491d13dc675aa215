"""Kernels for GPUs in Triton, which is imported where they are first used: it takes a while, and is not everywhere."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from types import ModuleType

import torch

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@functools.cache
def is_installed() -> bool:
    """Whether there is Triton; torch's builds for GPUs bring it along."""
    return importlib.util.find_spec("triton") is not None


def can_take(device: str, dtype: torch.dtype) -> bool:
    """Whether the kernels can work there, in that type."""
    return device == "cuda" and dtype in DTYPES and is_installed()


@functools.cache
def kernels(name: str) -> ModuleType:
    """The module of that name of this package."""
    return importlib.import_module(f"{__name__}.{name}")


__all__ = ["DTYPES", "can_take", "is_installed", "kernels"]
