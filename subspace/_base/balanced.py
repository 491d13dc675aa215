"""Numbers that all come equally often, at random places: what shares weights, or spreads inputs over outputs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from subspace._base.key import Key


def balanced(key: Key, n: int, k: int) -> NDArray[np.int64]:
    """n numbers of range(k) in random order, each n div k times, and n mod k of them, at random, once more.

    >>> sorted(balanced(Key(0), 6, 3).tolist())
    [0, 0, 1, 1, 2, 2]
    """
    once_more = key.fold("once more").distinct(k, n % k)
    return np.concatenate([np.tile(np.arange(k), n // k), once_more])[key.fold("order").permutation(n)]
