"""The truncated DCT of a convolution as a product of thin factors, exact to rounding, for more than one tap.

Column i = tap C + ch of row o is c_o cos(pi (2i + 1) o / 2q). The angle splits into a part of the tap and one of the
channel, a = pi C tap o / q and b = pi (2 ch + 1) o / 2q, so that

    D[o, tap, ch] = cos(a) [c_o cos(b)] - sin(a) [c_o sin(b)].

The matrix of all [c_o cos(b); c_o sin(b)], 2 n_out x C, covers only a small part of the band, C of q > C samples: it is
numerically of low rank r, and D = (cos(a) cosine - sin(a) sine) basis. Computed once for a shape, in float64.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from subspace.products.problem import Problem


class Factors(NamedTuple):
    """basis: (r, C), orthonormal rows; cosine, sine: (n_out, r); tap_cosine, tap_sine: (n_out, taps)."""

    basis: Tensor
    cosine: Tensor
    sine: Tensor
    tap_cosine: Tensor
    tap_sine: Tensor

    def kernel(self) -> Tensor:
        """What follows the basis: (n_out, r, taps)."""
        return self.cosine[:, :, None] * self.tap_cosine[:, None] - self.sine[:, :, None] * self.tap_sine[:, None]


@functools.lru_cache(maxsize=64)
def factors(n_out: int, channels: int, taps: int, tolerance: float) -> Factors:
    """The factors in float64 on the CPU; singular values below tolerance times the largest are dropped."""
    q = max(n_out, channels * taps)
    o = torch.arange(n_out, dtype=torch.float64)[:, None]
    b = math.pi * o * (2 * torch.arange(channels) + 1) / (2 * q)
    a = math.pi * o * channels * torch.arange(taps) / q
    norm = torch.full_like(o, math.sqrt(2 / q))
    norm[0] = math.sqrt(1 / q)
    left, singular, basis = torch.linalg.svd(torch.cat([norm * b.cos(), norm * b.sin()]), full_matrices=False)
    r = int((singular > tolerance * singular[0]).sum())
    thin = left[:, :r] * singular[:r]
    return Factors(basis[:r].contiguous(), thin[:n_out].contiguous(), thin[n_out:].contiguous(), a.cos(), a.sin())


def rank(problem: Problem) -> int:
    """r of the problem's transform, for float32; 0 for T = 0."""
    n_out, channels = problem.shape[:2]
    return 0 if problem.transform == "zero" else len(factors(n_out, channels, problem.taps, 1e-6).basis)
