"""What fixed matrices are made with: some rows at a time, and the signs of a Hadamard matrix."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BLOCK = 1 << 18  # entries computed at a time: their int64 temporaries stay in a cache


def by_rows(n_out: int, n_in: int, like: Tensor, block: Callable[[Tensor], Tensor]) -> Tensor:
    """The matrix whose rows i are block(i), for i of shape (any, 1): (n_out, n_in), of like's dtype and device.

    What their computation takes is never the size of the matrix.
    """
    rows = torch.arange(n_out, device=like.device).unsqueeze(1)
    entries = BLOCK if like.device.type == "cpu" else 16 * BLOCK
    if torch.compiler.is_compiling() or n_out * n_in <= entries:  # a compiled graph has a node for every step of a loop
        return block(rows).to(like.dtype)
    matrix, each = like.new_empty(n_out, n_in), max(1, entries // n_in)
    for first in range(0, n_out, each):
        matrix[first : first + each] = block(rows[first : first + each])
    return matrix


def parity_signs(common: Tensor) -> Tensor:
    """(-1)^(number of bits set): for common = i & j, entry (i, j) of a Hadamard matrix in Sylvester's order."""
    for shift in (32, 16, 8, 4, 2, 1):
        common = common ^ (common >> shift)
    return 1 - 2 * (common & 1)
