"""What a product costs by each of its routes: a sum of counts, each times a constant of the machine.

The counts (FLOPs, numbers moved, entries of w, nonzeros times rows, calls) are of a forward and a backward pass
with all gradients; `calibration` measures the constants, in seconds per count.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from subspace.kernels.factors import factors


class Problem(NamedTuple):
    """All that the choice of a route depends on.

    kind: "linear" or "conv"; shape: of w; k: the nonzeros of S; x_shape: (..., n_in), or (N, C, *spatial).
    """

    kind: str
    shape: tuple[int, ...]
    k: int
    transform: str
    x_shape: tuple[int, ...]
    dtype: torch.dtype
    device: str
    channels_last: bool = False
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    @property
    def taps(self) -> int:
        """Of the kernel."""
        return math.prod(self.shape[2:])

    @property
    def family(self) -> str:
        """Problems that the same constants describe."""
        if self.kind == "linear":
            return self.kind
        kind = "grouped" if self.groups > 1 else "conv" if self.taps > 1 else "pointwise"
        return f"{kind}, channels_last" if self.channels_last else kind

    @property
    def rows(self) -> int:
        """Rows of x, or pixels of the output, over the batch."""
        if self.kind == "linear":
            return math.prod(self.x_shape[:-1])
        sizes = zip(self.x_shape[2:], self.shape[2:], self.stride, self.padding, self.dilation, strict=True)
        return self.x_shape[0] * math.prod((n + 2 * p - d * (t - 1) - 1) // s + 1 for n, t, s, p, d in sizes)


def counts(problem: Problem, route: str) -> tuple[float, ...]:
    """Of this route: the last is 1, the call itself."""
    n_out, channels = problem.shape[:2]
    entries, rows, taps = math.prod(problem.shape), problem.rows, problem.taps
    moved = math.prod(problem.x_shape) + rows * n_out
    sparse = problem.k * rows
    q = max(n_out, channels * taps)
    transformed = rows * q * math.log2(q + 1)
    if route in ("dense", "channels_last"):
        return 6.0 * entries * rows, moved, entries, 1.0
    if route == "remat":
        return 4.0 * entries * rows, moved, entries, sparse, 1.0
    if route == "fft" or taps == 1:
        return transformed, moved, sparse, problem.k, 1.0
    r = 0 if problem.transform == "zero" else len(factors(n_out, channels, taps, 1e-6).basis)
    if route == "bottleneck":
        within = math.prod(problem.x_shape) // problem.x_shape[1]
        return 4.0 * r * (channels * within + taps * n_out * rows), moved + r * (rows + within), sparse, problem.k, 1.0
    return 4.0 * rows * (r * channels + 2 * r * n_out), rows * taps * n_out * bool(r), moved, sparse, problem.k, 1.0
