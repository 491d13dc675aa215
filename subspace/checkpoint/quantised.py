"""Numbers as small integers times a step for each block of them, and the few that are far out as they are.

The step of a block is its largest magnitude over 2^(bits-1) - 1, rounded up to bfloat16: no number moves by more than
half of it. A number so large that the others would lose by its step more than it costs is kept exactly (Dettmers et
al., "SpQR", 2023, keep outliers apart for this reason): a trained scale of d in a theta of small numbers, for instance.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

BITS = range(2, 9)
BLOCK = 128  # numbers that share a step
APART = 8  # the most of a block that are kept exactly
COST = 64.0  # bits that one of them takes in a file, its place included


class Quantised(NamedTuple):
    """A vector of k numbers: codes (k,) in int8, a step for each block in bfloat16, and values that hold at places."""

    codes: Tensor
    steps: Tensor
    places: Tensor
    values: Tensor

    def numbers(self) -> Tensor:
        """The vector, (k,) in the dtype of `values`."""
        numbers = self.codes.double() * self.steps.double().repeat_interleave(BLOCK)[: len(self.codes)]
        return numbers.to(self.values.dtype).index_put((self.places,), self.values)


def blocks(k: int) -> int:
    """How many blocks k numbers make."""
    return -(-k // BLOCK)


def quantise(theta: Tensor, bits: int) -> Quantised:
    """The numbers in codes of so many bits.

    Args:
        theta: (k,), of a real floating-point dtype.
        bits: Of a code, from 2 to 8.

    Returns:
        What `numbers` gives back within half a step, and exactly at the places that are kept.

    Raises:
        ValueError: For other bits, and for a number that is not finite or so large that no step reaches it.
    """
    if type(bits) is not int or bits not in BITS:
        raise ValueError(f"bits must be an integer from {BITS[0]} to {BITS[-1]}, got {bits!r}")
    theta = theta.detach().cpu()
    if not (theta.double().abs() <= torch.finfo(torch.float32).max).all():
        raise ValueError("theta must be finite and within float32's range to be quantised, got numbers that are not")
    x = pad(theta.double(), (0, BLOCK * blocks(len(theta)) - len(theta))).reshape(-1, BLOCK)
    apart = _far_out(x, len(theta))
    x = x.masked_fill(apart, 0.0)
    levels = 2 ** (bits - 1) - 1
    steps = _rounded_up(x.abs().amax(1) / levels)
    codes = (x / steps.double().masked_fill(steps == 0, 1.0)[:, None]).round()
    places = apart.flatten().nonzero().squeeze(1)
    return Quantised(codes.clamp(-levels, levels).to(torch.int8).flatten()[: len(theta)], steps, places, theta[places])


def _far_out(x: Tensor, k: int) -> Tensor:
    """Where a block is better off without its largest numbers: m of them spare each other one log2(first / next) bits.

    x: k numbers in blocks, filled up with zeros.
    """
    order = x.abs().sort(1, descending=True)
    largest = order.values[:, : APART + 1]
    in_block = (k - BLOCK * torch.arange(len(x))).clamp_max(BLOCK)
    spared = in_block[:, None] * (largest[:, :1] / largest).log2().nan_to_num(nan=0.0, posinf=float(2**20))
    best = (spared - COST * torch.arange(APART + 1)).argmax(1)
    return torch.zeros_like(x, dtype=torch.bool).scatter(1, order.indices, torch.arange(BLOCK) < best[:, None])


def _rounded_up(steps: Tensor) -> Tensor:
    """Non-negative numbers in bfloat16, none smaller than it was."""
    near = steps.to(torch.bfloat16)
    return (near.view(torch.int16) + (near.double() < steps)).to(torch.int16).view(torch.bfloat16)
