"""Where a run was trained: recorded with its result, for what a configuration does not fix."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

import numpy as np
import torch
from torch import nn

import subspace
from subspace import recipes


def environment(device: str = "cpu") -> dict[str, str | int]:
    """Versions, the machine, and what torch computes with in this process; device: torch's name of the one used."""
    return {
        "subspace": subspace.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "cpu": cpu(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else device,
        "kernels": kernels(),
    }


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def cpu() -> str:
    """The processor's name; its architecture where the system does not tell."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@functools.cache
def kernels() -> str:
    """The instruction set of the compiled kernels, or why there are none: what a summary says of them."""
    layer = nn.utils.skip_init(nn.Linear, 2, 2)  # type: ignore[no-untyped-call]  # draws from no global generator
    text = str(subspace.summary(subspace.structured(recipes.dctps(nn.Sequential(layer), dim=1))))
    return text.partition("compiled kernels: ")[2].partition("\n")[0]
