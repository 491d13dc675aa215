"""How much of a product each program of a kernel works on at a time."""

from __future__ import annotations

import functools
from typing import NamedTuple

from subspace.products.triton.tables import split

SCRATCH = 1 << 25  # bytes of all programs together: what a cache of 50 MB keeps beside everything else


class Settings(NamedTuple):
    """tile: rows that S is applied to at a time. rows: of them, those that are transformed at a time. part, part2:
    frequencies of the columns and rows of a transform at a time. block, depth: outputs of S, and nonzeros of each, at a time. copy: places of a row
    that are laid across at a time. warps: of a program. programs: of a multiprocessor.
    """

    tile: int
    rows: int
    part: int
    part2: int
    block: int
    depth: int
    copy: int
    warps: int
    programs: int


@functools.lru_cache(maxsize=256)
def settings(q: int, transform: str, itemsize: int, backward: bool) -> Settings:
    """Those that were fastest on an H100 for rows of length q."""
    q1, q2 = split(q) if transform != "zero" else (16, 16)
    half = 1 if transform == "hadamard" else 2
    rows = max(1, min(16, 4096 * 4 // q))
    if itemsize == 4:
        rows = max(1, rows // 2)
    part = min(q1 // half, max(16, 128 // rows // (1 if backward else 1)))
    return Settings(16, rows, part, min(q2, 32), 128, 4, 128, 4, 2)
