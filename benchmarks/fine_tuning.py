"""A task of `benchmarks.tasks` as the data and the model of a study, by import path.

subspace dimension benchmarks/fine-tuning.toml

`topic`, `order`, `kind` and `language` tune the last layer of MiniLM, whose lower layers are computed once; `digits` a
small convolutional network that was trained on the other digits here, and not by others.
"""

from __future__ import annotations

import copy
from functools import lru_cache

import torch
from torch import Tensor, nn

from benchmarks.tasks import TASKS, Headed, Split, Task
from subspace import Key
from subspace.study.data import Data, Tensors


@lru_cache(maxsize=1)
def task_of(name: str) -> Task:
    """The task of that name; ValueError with the names if there is none."""
    if name not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {name!r}")
    return TASKS[name](1)


def samples(task: str = "topic") -> Data:
    """Its samples to train and to test on; those of texts are hidden states with the mask as a last column."""
    found = task_of(task)
    train, test = (Tensors(packed(part), part.labels) for part in (found.train, found.test))
    return Data(train, test, found.classes)


def packed(split: Split) -> Tensor:
    """Hidden states (n, t, h) and a mask (n, t) as one tensor (n, t, h + 1); images as they are."""
    first, *mask = split.inputs
    return torch.cat([first, mask[0][..., None].to(first.dtype)], 2) if mask else first


class Tuned(nn.Module):
    """The pretrained part and a linear head, of inputs that are packed."""

    def __init__(self, net: Headed, has_mask: bool) -> None:
        super().__init__()
        self.net, self.has_mask = net, has_mask

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.net(inputs[..., :-1], inputs[..., -1]) if self.has_mask else self.net(inputs)
        return logits


def pretrained(key: Key, task: str = "topic") -> nn.Module:
    """The pretrained part of a task with a head drawn from the key, all of which trains."""
    found = task_of(task)
    base = copy.deepcopy(found.base).requires_grad_(True)
    return Tuned(Headed(base, found.features, found.classes, key), has_mask=len(found.train.inputs) > 1)
