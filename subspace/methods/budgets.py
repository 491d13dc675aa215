"""How many entries each tensor gets: budgets, exact in total and nested (a larger total takes from no tensor).

A budget is a function of the shapes of the tensors and of the total, and returns a count for every tensor. It raises
ValueError if the total is negative or more than the tensors have entries. Where a tensor holds several matrices, as
experts, gates of an LSTM or fused queries, keys and values, `divide` counts each of them, so that they get what they
would if they were apart; and shapes have the outputs first, whatever the tensor's `Layout`.

Every exact budget is min(numel, eps * share) for some share of each tensor, with eps such that the total is exact:
what does not fit into a tensor goes to the others. `apportion` solves any such monotone rule, level -> a count for
every tensor: it takes the highest level whose total is not too large, and gives what is left one each to the first
tensors that the next level would give more. The global budget, which lets scores of all tensors compete, is no rule on
shapes: it is what `select` does when it is given no budget.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from fractions import Fraction
from numbers import Integral, Rational

from torch import Size

from subspace._base.layout import STANDARD, Layout

Budget = Callable[[Sequence[Size], int], list[int]]  # (the tensors' shapes, total) -> a count for every tensor


def divide(budget: Budget, shapes: Sequence[Size], total: int, layouts: Sequence[Layout]) -> list[int]:
    """The budget's count for every tensor, by the matrices that it holds.

    >>> divide(epl, [Size([24, 8]), Size([8, 8])], 40, [Layout(blocks=3), Layout()])
    [30, 10]
    """
    parts = [
        (i, shape if layout == STANDARD else layout.convolution(shape))
        for i, (shape, layout) in enumerate(zip(shapes, layouts, strict=True))
        for _ in range(layout.matrices(shape))
    ]
    counts = [0] * len(shapes)
    for (i, _), count in zip(parts, budget([shape for _, shape in parts], total), strict=True):
        counts[i] += count
    return counts


def uniform(shapes: Sequence[Size], total: int) -> list[int]:
    """The same density in every tensor, rounded by Sainte-Lague's divisor method (no quota paradox).

    >>> uniform([Size([100]), Size([10]), Size([40])], 15)
    [10, 1, 4]
    """
    return _shared([shape.numel() for shape in shapes], shapes, total)


def epl(shapes: Sequence[Size], total: int) -> list[int]:
    """Equal per layer (Price and Tanner, ICML 2021): the same count in every tensor.

    >>> epl([Size([100]), Size([10]), Size([40])], 70)
    [30, 10, 30]
    """
    return _shared([1] * len(shapes), shapes, total)


def epf(shapes: Sequence[Size], total: int) -> list[int]:
    """Equal per filter (Price and Tanner, ICML 2021): the same count in every row of every tensor.

    This fixes each tensor's total; with `groups=rows` the entries are also spread evenly inside it, so that no two rows
    of a tensor differ by more than one. (The paper's code fixes the totals only.)

    >>> epf([Size([2, 9]), Size([5, 9]), Size([3, 2])], 30)
    [7, 17, 6]
    """
    return _shared([_axes(shape)[0] for shape in shapes], shapes, total)


def er(shapes: Sequence[Size], total: int) -> list[int]:
    """Erdos-Renyi (Mocanu et al. 2018): density proportional to (n_in + n_out) / (n_in n_out), kernels not counted.

    >>> er([Size([100, 100]), Size([10, 100]), Size([10, 10, 3, 3])], 600)
    [245, 135, 220]
    """
    return _shared([sum(_axes(s)[:2]) * s[2:].numel() for s in shapes], shapes, total)


def erk(shapes: Sequence[Size], total: int) -> list[int]:
    """Erdos-Renyi-Kernel (Evci et al. 2020): density proportional to the sum of the axes over their product.

    By the paper's iteration: where that exceeds 1 the tensor is dense, and eps is solved again for the others. (Price
    and Tanner's code of DCTpS clips instead, and loses the excess.)

    >>> erk([Size([100, 100]), Size([10, 100]), Size([10, 10, 3, 3])], 600)
    [357, 197, 46]
    """
    return _shared([sum(_axes(shape)) for shape in shapes], shapes, total)


def at_least(counts: Sequence[int], shapes: Sequence[Size], total: int) -> list[int]:
    """Counts that are known, and of a larger total the same part of what every tensor has left: `partial(at_least, c)`.

    >>> at_least([3, 0], [Size([103]), Size([10])], 3), at_least([3, 0], [Size([103]), Size([10])], 58)
    ([3, 0], [53, 5])
    """
    left = [shape.numel() - count for shape, count in zip(shapes, counts, strict=True)]
    top = max([1, *left])
    return apportion(lambda level: [c + n * level // top for c, n in zip(counts, left, strict=True)], top, total)


def _axes(shape: Size) -> tuple[int, ...]:
    return tuple(shape) or (1,)


def _shared(shares: Sequence[int], shapes: Sequence[Size], total: int) -> list[int]:
    """min(numel, eps * share) rounded; a level is 1 / unit of eps, fine enough to add at most one to any tensor."""
    caps, unit = [shape.numel() for shape in shapes], 4 * max(1, sum(shares))
    top = unit * max(-(-cap // max(1, share)) for cap, share in zip(caps, shares, strict=True))
    rule = list(zip(shares, caps, strict=True))
    return apportion(lambda level: [min((2 * s * level + unit) // (2 * unit), cap) for s, cap in rule], top, total)


def apportion(counts: Callable[[int], list[int]], top: int, total: int) -> list[int]:
    """Find the counts of the highest level that come to at most a total, filled up to the total in order.

    Args:
        counts: level -> a count for every tensor, none of which falls as the level rises.
        top: The highest level.
        total: What the counts come to.

    Returns:
        A count for every tensor.

    Raises:
        ValueError: If `total` is negative, or more than the top level's counts come to.
    """
    if not 0 <= total <= sum(counts(top)):
        raise ValueError(f"total must be in [0, {sum(counts(top))}], got {total}")
    level = bisect_right(range(top + 1), total, key=lambda level: sum(counts(level))) - 1
    base, above = counts(level), counts(min(level + 1, top))
    left = total - sum(base)
    for i in [i for i, (now, then) in enumerate(zip(base, above, strict=True)) if then > now][:left]:
        base[i] += 1
    return base


def exact(number: float) -> Fraction:
    """The number as it is written: 0.1 is one tenth here, so that 0.9 of 10 leaves 1 and not a little less.

    >>> int((1 - exact(0.9)) * 10), int((1 - 0.9) * 10)
    (1, 0)
    """
    return Fraction(number) if isinstance(number, Rational) else Fraction(str(float(number)))


def entries(numel: int, density: float | None, dim: int | None) -> int:
    """How many of `numel` weights exactly one of density and dim asks for.

    Raises:
        TypeError: If not exactly one of them is given.
        ValueError: If density is outside (0, 1], or the number outside [1, numel].
    """
    if (density is None) == (dim is None):
        raise TypeError(f"exactly one of density and dim must be given, got density={density} and dim={dim}")
    if dim is not None and not isinstance(dim, Integral):
        raise TypeError(f"dim must be an integer, got {dim!r}")
    if density is not None and not 0 < density <= 1:
        raise ValueError(f"density must be in (0, 1], got {density}")
    count = round(exact(density) * numel) if density is not None else dim
    if count is None or not 1 <= count <= numel:
        asked = f"dim={dim}" if density is None else f"density={density}, which is {count} entries"
        raise ValueError(f"dim must be in [1, {numel}], got {asked}")
    return count
