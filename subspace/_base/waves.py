"""Cosines and sines of fractions of a turn: computed in float64 on the CPU, for not every device has that type."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from subspace._base.constants import keep_constants
from subspace._base.exporting import as_constant


@as_constant
def waves(period: int, count: int, scale: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """scale cos and scale sin of 2 pi i / period, i = 0 ... count - 1, each rounded once: (2, count)."""
    return _waves(period, count, scale, dtype, device)  # by itself: a compiler does not take a cache for a constant


@keep_constants(64)
def _waves(period: int, count: int, scale: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    steps = torch.arange(count, device="cpu")
    angle = steps.double() * (2 * math.pi / period)
    cos, sin = angle.cos(), angle.sin()
    cos[4 * steps % (2 * period) == period] = 0  # a rounded pi / 2 has a cosine of 6e-17
    sin[2 * steps % period == 0] = 0
    return (scale * torch.stack([cos, sin])).to(dtype).to(device)
