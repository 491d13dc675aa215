"""The least dim that reaches a performance: a bracket on a log grid, then bisection, for several seeds at once.

The search begins in the middle of the grid, goes up or down by a factor of about 4 until one dim reaches the
performance and one does not, and halves what is between them until they are neighbours on the grid, 15 % apart;
between these log dim is interpolated. That is about 7 trainings a seed for a network of 10^5 weights, and 12 at most
for one of 10^8. Every seed goes its own way, so its threshold depends on no other seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

PER_DECADE, STEP = 16, 10  # dims of the grid in a factor of 10, and how many of them the bracket goes in a step
Performance = Callable[[Sequence[tuple[int, int]]], Sequence[float]]  # of each (dim, seed): they may train together


def log_grid(least: int, most: int) -> list[int]:
    """Dims from least to most, both included, 16 to a factor of 10 where integers are that close.

    >>> log_grid(5, 12)
    [5, 6, 7, 9, 10, 12]
    """
    places = range(math.ceil(PER_DECADE * math.log10(most)) + 1)
    dims = {round(10 ** (place / PER_DECADE)) for place in places}
    return sorted({least, most, *(dim for dim in dims if least <= dim <= most)})


@dataclass
class Search:
    """What one seed has been found to reach, by the place of the dim on the grid."""

    grid: Sequence[int]
    target: float
    found: dict[int, float] = field(default_factory=dict)

    @property
    def low(self) -> int:
        """The place of the greatest dim known not to reach the target; -1 for none."""
        return max((place for place, value in self.found.items() if value < self.target), default=-1)

    @property
    def high(self) -> int:
        """The place of the least dim known to reach it; the length of the grid for none."""
        return min((place for place, value in self.found.items() if value >= self.target), default=len(self.grid))

    def next_place(self) -> int | None:
        """Where to train next; None at the end."""
        low, high, last = self.low, self.high, len(self.grid) - 1
        if high - low <= 1:
            return None
        if not self.found:
            return last // 2
        if high > last:
            return min(low + STEP, last)
        if low < 0:
            return max(high - STEP, 0)
        return (low + high) // 2

    def threshold(self) -> float:
        """The log of the least dim that reaches the target, interpolated; inf or -inf where it is beyond the grid."""
        low, high = self.low, self.high
        if high == len(self.grid):
            return math.inf
        if low < 0:
            return -math.inf
        below, above = self.found[low], self.found[high]
        part = (self.target - below) / (above - below)
        return math.log(self.grid[low]) + part * math.log(self.grid[high] / self.grid[low])


def search_thresholds(
    performance: Performance, seeds: Sequence[int], grid: Sequence[int], target: float
) -> Mapping[int, Search]:
    """The searches of all seeds, ended; the next dims of all are asked of `performance` together."""
    searches = {seed: Search(grid, target) for seed in seeds}
    while wave := [(seed, place) for seed, each in searches.items() if (place := each.next_place()) is not None]:
        values = performance([(grid[place], seed) for seed, place in wave])
        for (seed, place), value in zip(wave, values, strict=True):
            searches[seed].found[place] = value
    return searches


def outcome(values: Sequence[float], epochs: int, target: float) -> float:
    """What a training counts for that had these values after its epochs: the last, or, where it could have been stopped
    as hopeless, the best up to there. So it does not matter whether it was.
    """
    verdicts = (done for done in range(1, min(len(values) + 1, epochs)) if is_hopeless(values[:done], epochs, target))
    stopped = next(verdicts, None)
    return values[-1] if stopped is None else max(values[:stopped])


def is_hopeless(values: Sequence[float], epochs: int, target: float) -> bool:
    """Whether a training that had these values after its epochs so far will not have the target after all of them.

    From half of the epochs on: if not even the mean gain of the later half of its epochs, gained again in each of those
    left, brings its best value to the target. Curves that flatten are never stopped wrongly.
    """
    done = len(values)
    if done < max(2, epochs / 2):
        return False
    before = done // 2
    gain = max(0.0, (max(values) - max(values[:before])) / (done - before))
    return max(values) + gain * (epochs - done) < target
