"""What an optimizer keeps for each number of a theta: moments, momentum, in full or as codes of 8 bits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from subspace._base.sharded import is_sharded


class State(NamedTuple):
    """per_entry: (dim,), or several of them, (k, dim). zero: what stands for 0 there."""

    per_entry: Tensor
    zero: float


def states_of(optimizer: torch.optim.Optimizer, theta: Tensor) -> list[State]:
    """All that an optimizer keeps for each number of theta.

    Raises TypeError for what cannot be set to 0 one by one, as in optimizers that keep moments in blocks.
    """
    states, kept = [], optimizer.state.get(theta, {})
    for name, value in kept.items():
        if not isinstance(value, Tensor) or value.shape[-1:] != theta.shape or value.ndim > 2:
            continue
        if name.startswith("qmap"):  # of bitsandbytes: the value of each code
            continue
        codes = kept.get(name.replace("state", "qmap"))
        if type(value) not in (Tensor, nn.Parameter) and not is_sharded(value):
            raise TypeError(f"optimizer must keep plain tensors of theta, got {type(value).__name__} in {name!r}")
        if value.is_floating_point():
            states.append(State(value, 0.0))
        elif isinstance(codes, Tensor) and codes.is_floating_point():
            states.append(State(value, int(codes.abs().argmin())))
        else:
            raise TypeError(f"optimizer must keep numbers of theta that can be set to 0, got {value.dtype} in {name!r}")
    return states
