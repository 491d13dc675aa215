"""Tensors held in fewer bits than they are computed with, torchao's and bitsandbytes', that multiply by themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from subspace._base.sharded import is_sharded

BLOCK = 1 << 20  # entries dequantised at a time


def is_quantised(tensor: Tensor) -> bool:
    """Whether it is a subclass that can be dequantised; a DTensor is none, but a part."""
    return not is_sharded(tensor) and is_traceable_wrapper_subclass(tensor) and hasattr(type(tensor), "dequantize")


def dequantised(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Its values as a plain tensor of that dtype."""
    return tensor.dequantize().to(dtype)


def values_of(tensor: Tensor) -> Iterator[Tensor]:
    """The floating-point tensors that its values are made of: itself, or the scales of a quantised one."""
    if is_quantised(tensor):
        for name in tensor.__tensor_flatten__()[0]:  # type: ignore[attr-defined]
            yield from values_of(getattr(tensor, name))
    elif tensor.is_floating_point():
        yield tensor


def quantised_linear(x: Tensor, weight: Tensor) -> Tensor:
    """x weight^T by the tensor's own product: (..., n_in) -> (..., n_out); nothing is saved for the backward pass."""
    y: Tensor = _Linear.apply(x, weight)  # type: ignore[no-untyped-call]
    return y


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.weight, ctx.dtype = weight, x.dtype
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None]:
        gy, gx = gradients[0], None
        for rows in _row_blocks(ctx.weight):
            part = gy[..., rows] @ dequantised(ctx.weight[rows], gy.dtype)
            gx = part if gx is None else gx + part
        return None if gx is None else gx.to(ctx.dtype), None


def _row_blocks(weight: Tensor) -> Iterator[slice]:
    n_out, n_in = weight.shape
    step = max(1, BLOCK // n_in)
    return (slice(first, min(first + step, n_out)) for first in range(0, n_out, step))
