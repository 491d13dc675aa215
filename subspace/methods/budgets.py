"""How many entries each tensor gets: budgets, exact in total and nested (a larger total takes from no tensor).

Every budget is one monotone rule, level -> a count for every tensor. `apportion` takes the highest level whose total is
not too large, and gives what is left one each to the first tensors that the next level would give more.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence

from torch import Size

Budget = Callable[[Sequence[Size], int], list[int]]


def uniform(shapes: Sequence[Size], total: int) -> list[int]:
    """The same density in every tensor, rounded by Sainte-Lague's divisor method (no quota paradox).

    >>> uniform([Size([100]), Size([10]), Size([40])], 15)
    [10, 1, 4]
    """
    numels = [shape.numel() for shape in shapes]
    unit = 4 * sum(numels)
    return apportion(lambda level: [(2 * n * level + unit) // (2 * unit) for n in numels], unit, total)


def epl(shapes: Sequence[Size], total: int) -> list[int]:
    """Equal per layer (Price and Tanner 2021): the same count in every tensor; what does not fit goes to the others.

    >>> epl([Size([100]), Size([10]), Size([40])], 70)
    [30, 10, 30]
    """
    numels = [shape.numel() for shape in shapes]
    return apportion(lambda level: [min(n, level) for n in numels], max(numels), total)


def apportion(counts: Callable[[int], list[int]], top: int, total: int) -> list[int]:
    """The counts of the highest level in [0, top] that come to at most `total`, filled up to `total` in order.

    Raises ValueError if `total` is more than the top level's counts come to.
    """
    if not 0 <= total <= sum(counts(top)):
        raise ValueError(f"total must be in [0, {sum(counts(top))}], got {total}")
    level = bisect_right(range(top + 1), total, key=lambda level: sum(counts(level))) - 1
    base, above = counts(level), counts(min(level + 1, top))
    left = total - sum(base)
    for i in [i for i, (now, then) in enumerate(zip(base, above, strict=True)) if then > now][:left]:
        base[i] += 1
    return base
