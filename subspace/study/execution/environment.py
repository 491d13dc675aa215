"""Where a run was trained: recorded with its result, for what a configuration does not fix."""

from __future__ import annotations

import os
import platform

import numpy as np
import torch

import subspace
from subspace._base.machine import cpu_name


def environment(device: str = "cpu") -> dict[str, str | int]:
    """Versions, the machine, and what torch computes with in this process; device: torch's name of the one used."""
    return {
        "subspace": subspace.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "cpu": cpu_name(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else device,
        "kernels": subspace.products.status(),
    }


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
