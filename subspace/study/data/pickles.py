"""Pickles of arrays and plain values, read without running what they say."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np

RECONSTRUCT = np.empty(0).__reduce__()[0]  # numpy's own, whose module has been renamed


def encoded(text: str, encoding: str) -> bytes:
    """What Python 3 writes bytes as, for readers of Python 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes must be encoded as latin1, got {encoding!r}")
    return text.encode("latin1")


ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): RECONSTRUCT,
    ("_codecs", "encode"): encoded,
}


class Unpickler(pickle.Unpickler):
    """Admits numpy's arrays, bytes, strings, numbers, lists, tuples and dictionaries; UnpicklingError for the rest."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"{module}.{name} must not be in a pickle of arrays")
        return ADMITTED[module, name]


def loads(text: bytes) -> Any:
    """The value, its strings of Python 2 read as latin1; any exception of Python's unpickler if it is damaged."""
    return Unpickler(io.BytesIO(text), encoding="latin1").load()
