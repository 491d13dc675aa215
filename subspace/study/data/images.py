"""Colour images, kept as bytes: a quarter of the memory, normalised batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from subspace import Key
from subspace.study.data.samples import Data, Tensors
from subspace.study.data.subsets import proportional_subset

PADDING = 4


class Images(NamedTuple):
    """Pixels (n, 3, h, w) in 0 ... 255 and labels (n,)."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def at(self, places: NDArray[np.int64]) -> Images:
        """Those at these places."""
        return Images(self.pixels[places], self.labels[places])


class Normalised:
    """Bytes (b, c, h, w) -> float32, (x / 255 - mean) / std in every channel."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = (torch.tensor(values).reshape(-1, 1, 1) for values in (mean, std))

    def __call__(self, images: Tensor) -> Tensor:
        return images.float().div_(255).sub_(self.mean).div_(self.std)


def crop_and_flip(images: Tensor, words: Tensor) -> Tensor:
    """Every image padded with 4 zeros on each side and cut out again anywhere, then mirrored or not: (b, c, h, w)."""
    b, c, h, w = images.shape
    places = 2 * PADDING + 1
    down, words = words % places, words // places
    right, mirrored = words % places, words // places % 2
    padded = pad(images, 4 * [PADDING]).permute(0, 2, 3, 1)
    rows = (torch.arange(b) * padded.shape[1] + down)[:, None] + torch.arange(h)  # of all images, one under another
    columns = right[:, None] + torch.where(mirrored[:, None] == 1, torch.arange(w).flip(0), torch.arange(w))
    pixels = rows[:, :, None] * padded.shape[2] + columns[:, None, :]
    return padded.reshape(-1, c).index_select(0, pixels.flatten()).reshape(b, h, w, c).permute(0, 3, 1, 2)


def image_data(
    train: Images, test: Images, num_classes: int, mean: Sequence[float], std: Sequence[float], augment: bool
) -> Data:
    """Data of images, augmented in training by `crop_and_flip` if asked for."""
    if not isinstance(augment, bool):
        raise ValueError(f"augment must be true or false, got {augment!r}")
    prepare = Normalised(mean, std)
    parts = []
    for images, augmented in ((train, crop_and_flip if augment else None), (test, None)):
        pixels = torch.from_numpy(images.pixels).contiguous(memory_format=torch.channels_last)
        parts.append(Tensors(pixels, torch.from_numpy(images.labels), augmented, prepare))
    return Data(parts[0], parts[1], num_classes)


def smaller(labels: NDArray[np.int64], count: int | None, name: str) -> NDArray[np.int64]:
    """The places of a smaller set, the same for every run: a `proportional_subset`."""
    return proportional_subset(labels, count, Key(0).fold("few").fold(name), name)
