"""Load the compiled kernels: once per process, the best instruction set that this processor has.

The environment variable SUBSPACE_NATIVE names another ("baseline", "avx2", "avx512"), or none of them ("0").
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

INTERFACE = 4  # of the functions below; a library of another number is of another version of this package
SETS = {"AVX512": ("avx512", "avx2", "baseline"), "AVX2": ("avx2", "baseline")}  # by torch's name for the processor


@functools.cache
def _loaded() -> tuple[ctypes.CDLL | None, str]:
    return _load(os.environ.get("SUBSPACE_NATIVE", ""))


@functools.cache
def _load(wanted: str) -> tuple[ctypes.CDLL | None, str]:
    if wanted == "0":
        return None, "switched off by SUBSPACE_NATIVE=0"
    names = (wanted,) if wanted else SETS.get(torch.backends.cpu.get_cpu_capability(), ("baseline",))
    for name in names:
        for path in sorted(Path(__file__).parent.glob(f"native_{name}.*")):
            try:
                found = ctypes.CDLL(str(path))
            except OSError as error:
                return None, f"{path.name} cannot be loaded: {error}"
            if found.subspace_interface() != INTERFACE:
                return None, f"{path.name} is of another version: install this package again"
            return found, name
    return None, f"not built for {' or '.join(names)}: no C++ compiler when this package was installed"


def is_available() -> bool:
    """Whether the compiled kernels are there."""
    return _loaded()[0] is not None


def status() -> str:
    """The instruction set in use, or in a sentence why there are no compiled kernels."""
    return _loaded()[1]


def library() -> ctypes.CDLL:
    """The compiled kernels; RuntimeError if they are not there."""
    found, why = _loaded()
    if found is None:
        raise RuntimeError(f"the native route needs the compiled kernels, got none: {why}")
    return found


def pointers(*tensors: Tensor | None) -> tuple[int | None, ...]:
    """Where their numbers are, for ctypes."""
    return tuple([None if t is None else t.data_ptr() for t in tensors])


def check(failed: Any) -> None:
    """Raise what a kernel's return value other than 0 stands for."""
    if failed == 2:
        raise ValueError("index must be in the range of the weight, got one that is not")
    if failed:
        raise MemoryError("the compiled kernels must have memory for their working set, got none")
