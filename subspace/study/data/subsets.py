"""Which samples go where: of every class the same share, drawn from a key."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from subspace import Key


def stratified(labels: np.ndarray, test_fraction: float, key: Key) -> tuple[Tensor, Tensor]:
    """Places to train on and to test on, sorted: of each class, round(test_fraction * its size) are for the test."""
    test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        order = key.fold(str(label)).permutation(len(places))
        test[places[order[: round(test_fraction * len(places))]]] = True
    return torch.from_numpy(np.flatnonzero(~test)), torch.from_numpy(np.flatnonzero(test))


def proportional_subset(labels: np.ndarray, count: int | None, key: Key, name: str) -> np.ndarray:
    """`count` places, sorted, every class in proportion to within one; all of them for None.

    A smaller subset is part of a larger one. ValueError, naming the option `name`, if there are fewer samples.
    """
    n = len(labels)
    if count is None:
        return np.arange(n)
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= n:
        raise ValueError(f"{name} must be an integer in [1, {n}], got {count!r}")
    share = np.empty(n)  # of its class that comes before a sample, itself by half
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        share[places] = (key.fold(str(label)).permutation(len(places)) + 0.5) / len(places)
    ties = key.fold("ties").permutation(n)
    return np.sort(np.lexsort((ties, share))[:count])
