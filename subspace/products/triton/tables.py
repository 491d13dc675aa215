"""What the kernels multiply by: the DCT and the Hadamard transform of length q = q1 q2 as two small matrix products.

The DCT of x is, up to the last step, the discrete Fourier transform of v, x with its even places ascending and then its
odd places descending (Makhoul, "A fast cosine transform in one and two dimensions", 1980). With v as a (q1, q2) array,
n = q2 n1 + n2 and k = k1 + q1 k2, that is a transform of the columns, q1 long, a factor for each entry ("twiddle"), and
a transform of the rows, q2 long; and as v is real, k1 = 0 ... q1/2 - 1 is enough, with k1 = q1/2 packed into the
place of the imaginary part of k1 = 0, which is 0. Real arithmetic only: q (q1 + 2 q2) multiplications for each row.

All is computed in float64 on the CPU, since not every accelerator has float64, and moved.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from subspace._base.constants import keep_constants
from subspace._base.waves import waves
from subspace.products.triton.lengths import split


class Tables(NamedTuple):
    """The constants of one length.

    columns: (q1, q1), the transform of the columns; of the DCT real and imaginary parts are interleaved on the last
    axis. rows: of the DCT (2, q2, q2), cosines and sines of the transform of the rows; else (1, q2, q2). twiddles: of
    the DCT (2, q2, q1 / 2), cosines and sines, float32. turn: of the DCT (2, q2), cosine and sine of the packed row.
    """

    columns: Tensor
    rows: Tensor
    twiddles: Tensor
    turn: Tensor


@keep_constants(64)
def tables(transform: str, q: int, dtype: torch.dtype, device: torch.device) -> Tables:
    """The tables of "dct" or "hadamard", the matrices in dtype."""
    matrices, others = (_dct if transform == "dct" else _hadamard)(q)
    return Tables(*(t.to(device, dtype) for t in matrices), *(t.to(device, torch.float32) for t in others))


def _dct(q: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    q1, q2 = split(q)
    n1, n2 = torch.arange(q1)[:, None], torch.arange(q2)[:, None]
    k1, k2 = torch.arange(q1 // 2), torch.arange(q2)
    cos, sin = _waves(n1 * k1, q1)
    sin[:, 0] = 2 * (n1[:, 0] % 2) - 1.0  # minus the alternating signs: k1 = q1 / 2
    columns = torch.stack([cos, -sin], -1).flatten(1) / math.sqrt(q1)
    rows = torch.stack(_waves((4 * n2 + 1) * k2, 4 * q2)) * math.sqrt(2 / q2)
    twiddles = torch.stack(_waves((4 * n2 + 1) * k1, 4 * q))
    turn = torch.stack(_waves(4 * n2[:, 0] + 1, 8 * q2))
    return (columns, rows), (twiddles, turn)


def _waves(steps: Tensor, period: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of 2 pi steps / period, whole turns dropped exactly."""
    cos, sin = waves(period, period, 1.0, torch.float64, torch.device("cpu"))
    return cos[steps % period], sin[steps % period]


def _hadamard(q: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    q1, q2 = split(q)
    return (_walsh(q1), _walsh(q2)[None]), (torch.zeros(2, 1, 1), torch.zeros(2, 1))


def _walsh(n: int) -> Tensor:
    """Sylvester's matrix of +-1, n a power of two."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < n:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix
