"""Text without a download: sources of Python's standard library, to predict character by character.

Of these files the bytes are the same in Python 3.10.13, 3.11.2, 3.11.7, 3.12.1 and 3.13.0; another text is warned of,
as its bits per character are not to be compared.

train   difflib.py, optparse.py, tracemalloc.py, _py_abc.py    167,913 characters
test    _markupbase.py, pyclbr.py, _threading_local.py          33,269 characters
"""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path

import torch

from subspace.study.data.samples import Data, Tensors

TRAIN = ("difflib.py", "optparse.py", "tracemalloc.py", "_py_abc.py")
TEST = ("_markupbase.py", "pyclbr.py", "_threading_local.py")
SHA256 = "2127373ca43586b783512904622dc155db6e25913b8339b2d781fbdb77d68b9f"
CHARACTERS = 128  # of ASCII


def stdlib(length: int = 64) -> Data:
    """Windows of characters to train and to test on, inputs (n, length) in int64; labels (n, length), each the next.

    A window begins where the last one ended. Line ends are those of Unix, and what is not ASCII is "?".

    Args:
        length: Characters in a window.

    Raises:
        ValueError: If length is below 1 or leaves no window to test on, or this Python comes without its sources.
    """
    texts = [read(names) for names in (TRAIN, TEST)]
    most = min(map(len, texts)) - 1
    if isinstance(length, bool) or not isinstance(length, int) or not 1 <= length <= most:
        raise ValueError(f"length must be an integer in [1, {most}] for stdlib, got {length!r}")
    if (found := hashlib.sha256(b"".join(texts)).hexdigest()) != SHA256:
        warnings.warn(
            f"the text of stdlib must have the SHA-256 {SHA256[:16]} to be compared with other Pythons', "
            f"got {found[:16]} from this one",
            stacklevel=2,
        )
    train, test = (windows(text, length) for text in texts)
    return Data(train, test, CHARACTERS)


def read(names: tuple[str, ...]) -> bytes:
    """The files of the standard library one after another, in ASCII."""
    folder = Path(os.__file__).parent
    try:
        text = "".join((folder / name).read_text(encoding="utf-8") for name in names)
    except OSError as error:
        raise ValueError(
            f"Python must come with its sources for stdlib, got none of {Path(str(error.filename)).name}"
        ) from None
    return text.encode("ascii", "replace")


def windows(text: bytes, length: int) -> Tensors:
    """The text in windows one after another, each with the characters one place further as its labels."""
    numbers = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    count = (len(numbers) - 1) // length
    inputs, labels = (numbers[start : start + count * length].reshape(count, length) for start in (0, 1))
    return Tensors(inputs, labels)
