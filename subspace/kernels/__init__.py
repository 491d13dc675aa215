"""Products with w = scale T + S that never build w: T the DCT, Hadamard or zero, S sparse."""

from subspace.kernels.conv import conv
from subspace.kernels.linear import linear

__all__ = ["conv", "linear"]
