"""What a product with a part of a weight costs in floating-point operations; a multiply-add counts as 2."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass


@dataclass(frozen=True)
class Flops:
    """FLOPs of a product, at each position or per sample.

    Args:
        forward: Of the product.
        to_input: Of the gradient to its input.
        to_theta: Of the gradient to theta.
        step: Of every step, whatever its size.
        dense: Of the gradient to all of w, which RigL looks at.
    """

    forward: float = 0.0
    to_input: float = 0.0
    to_theta: float = 0.0
    step: float = 0.0
    dense: float = 0.0

    def __add__(self, other: Flops) -> Flops:
        return Flops(*map(sum, zip(astuple(self), astuple(other), strict=True)))

    @property
    def training(self) -> float:
        """A forward and a backward pass of one sample."""
        return self.forward + self.to_input + self.to_theta

    @property
    def growth(self) -> float:
        """A forward and a backward pass of one sample for the gradient of all of w."""
        return self.forward + self.to_input + self.dense


def dct_flops(q: int) -> float:
    """The FLOPs of one DCT of length q: a real FFT by the usual count of Frigo and Johnson (2005), and twiddle factors.

    >>> dct_flops(4)
    38.0
    """
    return fft_flops(q) + 6 * (q // 2 + 1)


def hadamard_flops(q: int) -> int:
    """The additions of one Walsh-Hadamard transform of length q, padded to a power of two."""
    bits = (q - 1).bit_length()
    return bits << bits


def block_hadamard_flops(n: int, block: int | None = None) -> int:
    """The additions and scalings of `transforms.block_fwht`: of pieces of a power of two each.

    >>> block_hadamard_flops(5), block_hadamard_flops(4, 2)
    (13, 8)
    """
    left, total = n, n
    block = block or 1 << (n.bit_length() - 1)
    while left:
        size = min(block, 1 << (left.bit_length() - 1))
        total += left // size * hadamard_flops(size)
        left %= size
    return total


def fft_flops(n: int) -> float:
    """The FLOPs of one real FFT of length n, by the usual count of Frigo and Johnson (2005)."""
    return 2.5 * n * math.log2(n)


def haar_flops(n: int) -> int:
    """The additions and multiplications of one Haar transform of length n: four for each of its n - 1 pairs."""
    return 4 * (n - 1)
