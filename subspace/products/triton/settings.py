"""How much of a transform each program of a kernel works on at a time: what was fastest on an H200, of some tried.

More at a time has more of the arithmetic in one matrix product, and fewer registers and less shared memory for others.
"""

from __future__ import annotations

from typing import NamedTuple

from subspace.products.triton.lengths import split


class Settings(NamedTuple):
    """rows: of x, at a time. part, part2: of them, frequencies of the columns and of the rows of a transform at a time.

    warps: of a program. programs: of a multiprocessor.
    """

    rows: int
    part: int
    part2: int
    warps: int = 4
    programs: int = 2


FORWARD = {256: 8, 512: 8, 1024: 4, 2048: 4, 4096: 2}  # rows by length; 1 of longer ones
BACKWARD = {256: 16, 512: 8, 1024: 8, 2048: 4, 4096: 4}
HADAMARD = {256: 16, 512: 16, 1024: 8, 2048: 4, 4096: 2}
SINGLE = {256: 8, 512: 4, 1024: 4, 2048: 2}  # in float32


def settings(q: int, transform: str, itemsize: int, backward: bool) -> Settings:
    """Of transforms of length q, of numbers of so many bytes."""
    q1, q2 = split(q)
    half = q1 // 2
    if transform == "hadamard":
        return Settings(HADAMARD.get(q, 1), min(q1, 128 if itemsize == 2 else 32), min(q2, 64 if itemsize == 2 else 16))
    if itemsize == 4:
        return Settings(SINGLE.get(q, 1), min(half, 32 if q < 8192 else 16), min(q2, 32 if q < 2048 else 16))
    if backward:
        return Settings(BACKWARD.get(q, 1), half, min(q2, 32))
    return Settings(FORWARD.get(q, 1), min(half, 64 if q < 32768 else 32), min(q2, 64 if q == 16384 else 32))
