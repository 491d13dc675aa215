"""How many numbers a method can train so that its file is not too large.

A file's size depends on the numbers in it: what fits is found for numbers that compress least, evenly spread codes.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import torch
from torch import nn

from subspace import Key, subspaces, targets
from subspace.study.methods import Method
from subspace.study.methods.setting import Setting
from subspace.study.training.costs.sizes import file_bytes

HEADER = 100  # bytes of a tensor's name, place and digest
ROOM = 50  # bytes by which files of as many numbers differ, by the order of their names and the digits of fingerprints
FINE = 500  # the dim that is found is within one part in so many of the largest


def largest_dim(dense: nn.Module, setting: Setting, method: Method, budget: int, bits: int) -> int:
    """The largest dim at which the method's file has at most `budget` bytes, whatever is trained.

    Args:
        dense: The network, which stays as it is.
        setting: Of the run; its size is not used.
        method: What re-parametrizes a network of any dim.
        budget: Bytes.
        bits: Of a number of theta in the file; 0 for exact ones.

    Raises:
        ValueError: If even the fewest numbers make a file that is too large.
    """
    if setting.options.get("embedding") == "lottery":
        raise ValueError("bytes must not be the size of a lottery subspace, whose directions are in its file")
    weights = sum(weight.numel() for *_, weight in targets(dense).values())

    def size(dim: int) -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that tensors get nothing of few numbers
            model = method.apply(copy.deepcopy(dense), replace(setting, size={"dim": dim}, density=dim / weights))
        room = ROOM if bits or setting.options.get("burn_in") else 0
        return file_bytes(filled(model), bits) + moved_places(model) * (method.mover is not None) + room

    low = method.least_dim(dense)
    high = max(low, min(weights, 8 * budget // (bits - 1 if bits else 32)))
    least, most = size(low), size(high)
    if least > budget:
        raise ValueError(f"bytes must be at least {least:,} for {method.label}, got {budget:,}")
    while most > budget and high - low > (step := max(1, low // FINE)):
        guess = low + (high - low) * (budget - least) // (most - least)
        guess = min(max(guess, low + step), high - step) if high - low > 2 * step else low + step
        if (found := size(guess)) <= budget:
            low, least = guess, found
        else:
            high, most = guess, found
    return high if most <= budget else low


@torch.no_grad()
def filled(model: nn.Module) -> nn.Module:
    """The model with evenly spread numbers in all that trains, in place, and a first one far out, as a scale is."""
    key = Key(0).fold("fitting")
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            numbers = key.fold(name).uniform(parameter.numel())
            parameter.copy_(2 * torch.from_numpy(numbers).reshape(parameter.shape) - 1)
            parameter.view(-1)[:1] = 1000.0
    return model


def moved_places(model: nn.Module) -> int:
    """The bytes that a file holds of the places of a sparse U once they have moved: log2 of the size for each."""
    spaces = [space for _, space in subspaces(model)]
    moving = [(space, part.sparse_part()) for space in spaces for part in space.embedding.parts()]
    return sum(HEADER + part.dim * (space.shape.numel() - 1).bit_length() // 8 for space, part in moving if part)
