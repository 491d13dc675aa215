"""Frames: matrices of orthonormal columns, at random or of singular vectors, in float64 on the CPU.

Each is determined by what it is made of, so that it can be made again on another machine, to rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from subspace._base.dtypes import at_least_float32
from subspace._base.key import Key


def random_frame(key: Key, n: int, k: int) -> Tensor:
    """k uniform orthonormal columns: the Q of a Gaussian matrix, the diagonal of R positive: (n, k)."""
    return orthonormalized(torch.from_numpy(key.normal(n * k)).reshape(n, k))


def singular_frames(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The left and right singular vectors of all singular values that differ from 0: (n_out, rank), (n_in, rank).

    The largest value comes first. Of each pair, the entry of the left vector that is largest in magnitude is positive,
    the first one among equals.
    """
    matrix = matrix.detach().cpu()
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    rank = int((s > s[0] * max(matrix.shape) * torch.finfo(at_least_float32(matrix.dtype)).eps).sum())
    u, v = u[:, :rank], vh[:rank].T
    signs = u.gather(0, u.abs().argmax(0, keepdim=True)).sign()
    return u * signs, v * signs


def completed(frame: Tensor) -> Tensor:
    """The columns of a frame, and fixed ones that make it square: (n, k) -> (n, n)."""
    n, k = frame.shape
    rest = Key(0).fold("completed").normal(n * (n - k))
    return orthonormalized(torch.cat([frame, torch.from_numpy(rest).reshape(n, n - k)], 1))


def orthonormalized(matrix: Tensor) -> Tensor:
    """The Q of a matrix of independent columns, the diagonal of R positive: (n, k) -> (n, k)."""
    q, r = torch.linalg.qr(matrix)
    basis: Tensor = q * torch.where(r.diagonal() < 0, -1.0, 1.0)
    return basis
