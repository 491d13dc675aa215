"""A perceptron with ReLUs; by default 784-200-200-10, that of Li et al., "Measuring the intrinsic dimension", 2018."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import relu

from subspace import Key
from subspace.study.models.initialisation import initialise


class MLP(nn.Module):
    """Inputs (n, ...), flattened -> logits (n, num_classes); norm: a batch-norm before every ReLU."""

    def __init__(self, sizes: Sequence[int], norm: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))
        self.norms = nn.ModuleList(nn.BatchNorm1d(size) if norm else nn.Identity() for size in sizes[1:-1])

    def forward(self, inputs: Tensor) -> Tensor:
        x: Tensor = self.layers[0](inputs.flatten(1))
        for norm, layer in zip(self.norms, self.layers[1:], strict=True):
            x = layer(relu(norm(x)))
        return x


def mlp(
    key: Key,
    num_classes: int = 10,
    input_shape: Sequence[int] = (1, 28, 28),
    hidden: Sequence[int] = (200, 200),
    norm: bool = False,
    depth: int = 1,
) -> MLP:
    """An MLP with Kaiming-normal weights drawn from the key.

    norm: with batch-norms. depth: how often hidden layers are repeated. ValueError for a hidden layer without a size,
    or a depth below 1.
    """
    if not isinstance(hidden, list | tuple) or any(not isinstance(size, int) or size < 1 for size in hidden):
        raise ValueError(f"hidden must be the sizes of the hidden layers, got {hidden!r}")
    if not isinstance(depth, int) or depth < 1:
        raise ValueError(f"depth must be an integer of at least 1 for mlp, got {depth!r}")
    return initialise(lambda: MLP([math.prod(input_shape), *[*hidden] * depth, num_classes], norm), key)
