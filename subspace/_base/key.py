"""`Key`: named, counter-based randomness, the same numbers on every platform, device and version.

A key is a seed and a path of names. Word i of its stream is word (i mod 4) of Philox4x64-10 (Salmon et al., "Parallel
random numbers: as easy as 1, 2, 3", SC 2011) at counter 1 + i div 4, under the 128-bit key blake2b(json([seed,
*path])). Only raw bits are asked of numpy, whose bit generators' streams are guaranteed; the few lines from bits to
numbers are here, and use nothing but integer arithmetic and the operations that IEEE 754 rounds correctly (+ - * /
sqrt), so every result is bitwise portable. No global generator is read or moved.

Costs: about 20 ns a word, 50 ns a normal; `distinct(n, k)` is O(k) as long as k <= n / 2.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Key:
    """The name of one stream of random numbers.

    Args:
        seed: Any integer.
        path: Names that tell streams of one seed apart; `fold` adds one.

    Raises:
        TypeError: If seed is no integer.

    >>> Key(0).fold("layer1.weight").integers(4, high=10)
    array([4, 5, 4, 2])
    """

    seed: int
    path: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "seed", operator.index(self.seed))
        except TypeError:
            raise TypeError(f"seed must be an integer, got {self.seed!r}") from None

    def __str__(self) -> str:
        return json.dumps([self.seed, *self.path])

    @classmethod
    def parse(cls, text: str) -> Key:
        """The key whose `str` is `text`."""
        seed, *path = json.loads(text)
        return cls(seed, tuple(path))

    def fold(self, name: str) -> Key:
        """The key one name further down the path, whose stream is independent of this one's."""
        if not isinstance(name, str):
            raise TypeError(f"name must be a string, got {name!r}")
        return Key(self.seed, (*self.path, name))

    def bits(self, n: int, start: int = 0) -> NDArray[np.uint64]:
        """Words start ... start + n of the stream."""
        key = np.frombuffer(blake2b(str(self).encode(), digest_size=16).digest(), "<u8")
        skip = start % 4
        words: NDArray[np.uint64] = np.random.Philox(key=key, counter=start // 4).random_raw(skip + n)[skip:]
        return words

    def integers(self, n: int, high: int) -> NDArray[np.int64]:
        """n integers uniform on [0, high): the words mod high, leaving out those that would favour small values."""
        if high < 1:
            raise ValueError(f"high must be at least 1, got {high}")
        largest = np.uint64(2**64 - 2**64 % high - 1)
        drawn = n
        while len(fair := (words := self.bits(drawn))[words <= largest]) < n:
            drawn += n - len(fair) + 8
        numbers: NDArray[np.int64] = (fair[:n] % np.uint64(high)).astype(np.int64)
        return numbers

    def distinct(self, n: int, k: int) -> NDArray[np.int64]:
        """k different places out of range(n), in random order; those for k are the first of those for k + 1."""
        if not 0 <= k <= n:
            raise ValueError(f"k must be in [0, {n}], got {k}")
        sparse = min(k, n // 2)  # beyond half of n, drawing until a place is new would take ever longer
        drawn = sparse
        while len(first := np.unique(places := self.integers(drawn, max(n, 1)), return_index=True)[1]) < sparse:
            drawn += drawn // 2 + 8
        chosen = places[np.sort(first)[:sparse]]
        if k == sparse:
            return chosen
        free = np.ones(n, dtype=bool)
        free[chosen] = False
        rest = np.flatnonzero(free)
        return np.concatenate([chosen, rest[self.fold("rest").permutation(len(rest))[: k - sparse]]])

    def permutation(self, n: int) -> NDArray[np.int64]:
        """A uniform permutation of range(n): the order of n words."""
        return np.argsort(self.bits(n), kind="stable").astype(np.int64)

    def signs(self, n: int, start: int = 0) -> NDArray[np.int8]:
        """n fair signs, -1 or +1: the bits of the words, lowest first."""
        skip = start % 64
        words = self.bits((skip + n + 63) // 64, start // 64).astype("<u8")
        bits = np.unpackbits(words.view(np.uint8), bitorder="little")[skip : skip + n]
        return 1 - 2 * bits.astype(np.int8)

    def uniform(self, n: int, start: int = 0) -> Floats:
        """n numbers uniform on (0, 1), one word each: odd multiples of 2**-53, so neither end is ever reached."""
        numbers: Floats = ((self.bits(n, start) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
        return numbers

    def normal(self, n: int, start: int = 0, dtype: DTypeLike = np.float64) -> NDArray[Any]:
        """n standard normal numbers, one word each: the inverse distribution function at `uniform`, then rounded."""
        out = np.empty(n, dtype)
        for first in range(0, n, 1 << 15):  # pieces that stay in cache
            piece = out[first : first + (1 << 15)]
            piece[:] = normal_quantile(self.uniform(len(piece), start + first))
        return out


# P. J. Acklam's rational approximation of the normal quantile, relative error 1.15e-9; highest power first.
# fmt: off
CENTRE = (-39.69683028665376, 220.9460984245205, -275.9285104469687,
          138.3577518672690, -30.66479806614716, 2.506628277459239)
CENTRE_BELOW = (-54.47609879822406, 161.5858368580409, -155.6989798598866,
                66.80131188771972, -13.28068155288572, 1.0)
TAIL = (-0.007784894002430293, -0.3223964580411365, -2.400758277161838,
        -2.549732539343734, 4.374664141464968, 2.938163982698783)
TAIL_BELOW = (0.007784695709041462, 0.3224671290700398, 2.445134137142996, 3.754408661907416, 1.0)
# fmt: on


def normal_quantile(p: Floats) -> Floats:
    """The x with P(N(0, 1) <= x) = p, for p in (0, 1), by portable arithmetic."""
    centred = p - 0.5
    square = centred * centred
    x = centred * polynomial(CENTRE, square) / polynomial(CENTRE_BELOW, square)
    tails = np.flatnonzero(np.abs(centred) > 0.47575)
    t = np.sqrt(-2.0 * logarithm(np.minimum(p[tails], 1.0 - p[tails])))
    x[tails] = np.copysign(polynomial(TAIL, t) / polynomial(TAIL_BELOW, t), centred[tails])
    return x


def logarithm(x: Floats) -> Floats:
    """log x, to 1e-15, by portable arithmetic (a library's log differs in its last bit from platform to platform)."""
    mantissa, exponent = np.frexp(x)
    s = (mantissa - 0.7071067811865476) / (mantissa + 0.7071067811865476)
    series = polynomial([2.0 / (2 * j + 1) for j in reversed(range(11))], s * s)  # 2 atanh(s) / s
    return (exponent - 0.5) * 0.6931471805599453 + s * series


def polynomial(coefficients: Sequence[float], x: Floats) -> Floats:
    """Horner's rule, highest power first; each product and sum rounded on its own."""
    return reduce(lambda value, c: value * x + c, coefficients[1:], np.full_like(x, coefficients[0]))
