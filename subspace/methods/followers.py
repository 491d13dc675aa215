"""Copies that move with a model: averages of its weights, snapshots, whatever is kept of theta by slot.

A follower's entry in a slot that begins anew is 0, as the model's: it forgets what was there. So an
average of thetas is at every place what the average of the dense weights would be, had it been set to the model's
weight there whenever the place was dropped or grown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from subspace.methods.parts import Move, Part, parts

Follower = nn.Module | Mapping[str, Tensor]  # a copy of the model, or tensors by the names of the model's Parameters


class Copy(NamedTuple):
    """One tensor's in a follower. theta: (dim,). part: None where there is no more than that."""

    theta: Tensor
    part: Part | None

    def follow(self, model: Part, move: Move) -> None:
        """Move as the model has."""
        model.begin_anew(self.theta, move.slots)
        if self.part is not None:
            self.part.write(Move(*(t.to(self.part.index.device) for t in move)))


def copies(model: nn.Module, moving: Mapping[str, Part], follower: Follower) -> dict[str, Copy]:
    """What a follower keeps of each tensor that moves, by the tensor's name in the model.

    Raises ValueError for a follower without it, or of other places: it has missed a move, or has made one of its own.
    """
    found = _of_mapping(model, moving, follower) if isinstance(follower, Mapping) else _of_module(moving, follower)
    for name, (theta, part) in found.items():
        mine = moving[name]
        if theta.shape != mine.space.theta.shape:
            wanted = tuple(mine.space.theta.shape)
            raise ValueError(f"a follower's theta of {name} must have shape {wanted}, got {tuple(theta.shape)}")
        if part is not None and not torch.equal(part.index.to(mine.index.device), mine.index):
            raise ValueError(f"a follower must have the places of the model that it follows, got others in {name}")
        if part is not None:
            part.sparse.moves = True
    return found


def _of_module(moving: Mapping[str, Part], follower: nn.Module) -> dict[str, Copy]:
    """By the order of the tensors: a wrapper, as AveragedModel, has other names."""
    theirs = [part for _, part in parts(follower)]
    if len(theirs) != len(moving):
        raise ValueError(f"a follower must have the {len(moving)} tensors of the model, got {len(theirs)}")
    return {name: Copy(part.space.theta, part) for name, part in zip(moving, theirs, strict=True)}


def _of_mapping(model: nn.Module, moving: Mapping[str, Part], follower: Mapping[str, Tensor]) -> dict[str, Copy]:
    names = {id(p): name for name, p in model.named_parameters()}
    found = {}
    for name, part in moving.items():
        key = names[id(part.space.theta)]
        plain = key.replace("_orig_mod.", "").removeprefix("module.")
        theta = follower.get(key, follower.get(plain))
        if theta is None:
            raise ValueError(f"a follower must have all thetas of the model, got none of the name {plain}")
        found[name] = Copy(theta, None)
    return found
