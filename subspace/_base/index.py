"""Flat places in a weight, as an int64 index of distinct places; what is wrong with another; few bytes that hold one.

The places may be in any order: theta[j] is the entry at place index[j], and j its slot for as long as it lives.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PIECE = 1 << 16  # places packed at a time, a multiple of 8


def check(index: Tensor, size: int) -> None:
    """Raise ValueError unless the index holds distinct places in range(size), 1-d int64; takes O(k) if it is sorted."""
    if why := fault(index, size):
        raise ValueError(f"index must be 1-d int64, distinct and in [0, {size}), got {why}")


def fault(index: Tensor, size: int) -> str | None:
    """What an index has that `check` refuses, in a few words; None if nothing."""
    if index.ndim != 1 or index.dtype != torch.int64:
        return f"{index.ndim}-d {index.dtype}"
    if not len(index):
        return None
    first, last = (int(bound) for bound in index.aminmax())
    if first < 0 or last >= size:
        return f"{first} ... {last}"
    if is_sorted(index):
        return None
    repeated = int((index.sort().values.diff() == 0).sum())
    return f"{repeated} repeated" if repeated else None


def pack(index: Tensor, size: int, *, ordered: bool = True) -> Tensor:
    """The places as a short uint8 tensor on the CPU, of a length that k, size and `ordered` determine.

    In order they take 2 + log2(size / k) bits each, as many as a set needs and half a bit more (Elias, "Efficient
    storage and retrieval by content and address of static files", J. ACM 21, 1974); in any other, log2(size), each
    rounded up.
    """
    places = index.cpu().numpy().astype(np.uint64)
    width = _low_bits(len(places), size) if ordered else _width(size)
    low = _packed_bits(places, width)
    if not ordered:
        return torch.from_numpy(low)
    high = np.zeros(_high_bits(len(places), size), np.uint8)
    high[(places >> np.uint64(width)).astype(np.int64) + np.arange(len(places))] = 1
    return torch.from_numpy(np.concatenate([low, np.packbits(high, bitorder="little")]))


def unpack(content: Tensor, k: int, size: int, *, ordered: bool = True) -> Tensor:
    """The index that was packed: (k,) int64 on the CPU; raises ValueError for another length, and checks no place."""
    bits = content.cpu().numpy()
    width = _low_bits(k, size) if ordered else _width(size)
    if len(bits) != (length := packed_bytes(k, size, ordered=ordered)):
        raise ValueError(f"a packed index must have {length} bytes for {k} places of {size}, got {len(bits)}")
    split = _bytes(k * width)
    places = _unpacked_bits(bits[:split], k, width)
    if ordered:
        ones = np.flatnonzero(np.unpackbits(bits[split:], bitorder="little"))
        if len(ones) != k:
            raise ValueError(f"a packed index must have {k} places, got {len(ones)}")
        places |= (ones - np.arange(k)).astype(np.uint64) << np.uint64(width)
    return torch.from_numpy(places.astype(np.int64))


def packed_bytes(k: int, size: int, *, ordered: bool = True) -> int:
    """The length of `pack`'s tensor."""
    if not ordered:
        return _bytes(k * _width(size))
    return _bytes(k * _low_bits(k, size)) + _bytes(_high_bits(k, size))


def is_sorted(index: Tensor) -> bool:
    """Whether every place is larger than the one before."""
    return bool((index.diff() > 0).all())


def _bytes(bits: int) -> int:
    return -(-bits // 8)


def _width(size: int) -> int:
    return max(0, size - 1).bit_length()


def _low_bits(k: int, size: int) -> int:
    return max(0, (size // max(1, k)).bit_length() - 1)


def _high_bits(k: int, size: int) -> int:
    return k + (max(0, size - 1) >> _low_bits(k, size)) if k else 0


def _packed_bits(numbers: NDArray[np.uint64], width: int) -> NDArray[np.uint8]:
    """The lowest bits of each number, one after another."""
    parts = [np.empty(0, np.uint8)]
    for first in range(0, len(numbers), PIECE):
        each = numbers[first : first + PIECE, None].astype("<u8").view(np.uint8)
        parts.append(np.packbits(np.unpackbits(each, axis=1, bitorder="little")[:, :width], bitorder="little"))
    return np.concatenate(parts)


def _unpacked_bits(content: NDArray[np.uint8], k: int, width: int) -> NDArray[np.uint64]:
    numbers = np.zeros(k, np.uint64)
    for first in range(0, k, PIECE):
        count = min(PIECE, k - first)
        each = np.unpackbits(content[first * width // 8 :], count=count * width, bitorder="little")
        padded = np.zeros((count, 64), np.uint8)
        padded[:, :width] = each.reshape(count, width)
        numbers[first : first + count] = np.packbits(padded, axis=1, bitorder="little").view("<u8")[:, 0]
    return numbers
