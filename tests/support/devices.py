"""Where kernels for GPUs are tested: on a GPU where there is one, else by Triton's interpreter on the CPU."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from subspace.products.triton import is_installed

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # which conftest sets where there is no GPU
TRITON_DEVICE = None if not is_installed() else "cpu" if INTERPRETED else "cuda" if torch.cuda.is_available() else None


@contextlib.contextmanager
def interpreted() -> Iterator[None]:
    """The interpreter multiplies the bits of bfloat16 matrices as if they were integers: give it their values."""
    if not INTERPRETED:
        yield
        return
    import triton.language as tl
    from triton.runtime import interpreter

    def values(handle):
        half = handle.dtype.scalar == tl.bfloat16
        return (handle.data.astype(np.uint32) << 16).view(np.float32) if half else handle.data

    def create_dot(self, a, b, d, *_):
        product = np.matmul(values(a), values(b), dtype=d.data.dtype) + d.data
        return interpreter.TensorHandle(product, d.dtype.scalar)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
        yield
