"""The dtype that sums and transforms are computed in."""

from __future__ import annotations

import torch


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for every other floating-point dtype."""
    return dtype if dtype == torch.float64 else torch.float32
