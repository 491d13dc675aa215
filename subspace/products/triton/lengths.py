"""Which lengths of a transform the kernels can do, and as the product of which two."""

from __future__ import annotations

import torch

LENGTHS = tuple(1 << bits for bits in range(8, 16))  # 256 ... 32768


def length(transform: str, n_out: int, n_in: int) -> int:
    """The length of the transform that w is a part of; a Hadamard transform's is a power of two."""
    larger = max(n_out, n_in)
    return 1 << (larger - 1).bit_length() if transform == "hadamard" else larger


def is_length(q: int, dtype: torch.dtype) -> bool:
    """Whether a transform of length q fits a multiprocessor's shared memory."""
    return q in LENGTHS and (q < LENGTHS[-1] or dtype != torch.float32)


def split(q: int) -> tuple[int, int]:
    """(q1, q2), powers of two with q1 q2 = q, q1 the larger: the split that costs least."""
    bits = q.bit_length() - 1
    return 1 << (bits + 1) // 2, 1 << bits // 2
