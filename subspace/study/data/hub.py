"""Image sets of the Hugging Face hub, through its library `datasets` where that is installed."""

from __future__ import annotations

from importlib import import_module
from typing import NamedTuple

import numpy as np

from subspace.study.data.images import Pictures


class Mirror(NamedTuple):
    """A data set on the hub: the columns of images and labels, and the names of its training and its test part."""

    repository: str
    image: str
    label: str
    train: str = "train"
    test: str = "test"


def from_hub(mirror: Mirror) -> tuple[Pictures, Pictures] | None:
    """The training and the test part, kept in the library's own cache; None where it is not installed."""
    try:
        datasets = import_module("datasets")
    except ImportError:
        return None
    try:
        parts = datasets.load_dataset(mirror.repository)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{mirror.repository} must be downloadable from the hub, got {error}") from error
    found = []
    for name in (mirror.train, mirror.test):
        pixels = np.stack([np.asarray(image.convert("RGB")) for image in parts[name][mirror.image]])
        labels = np.asarray(parts[name][mirror.label], np.int64)
        found.append(Pictures(pixels.transpose(0, 3, 1, 2), labels))
    return found[0], found[1]
