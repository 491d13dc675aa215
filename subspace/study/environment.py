"""Where a run was done: recorded beside its result, for what a configuration does not fix."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import torch

import subspace


def environment() -> dict[str, str | int]:
    """Versions, machine and the threads torch computes with in this process."""
    return {
        "subspace": subspace.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu(),
        "threads": torch.get_num_threads(),
    }


def cpu() -> str:
    """The processor's name; its architecture where the system does not tell."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
