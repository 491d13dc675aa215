"""MNIST-1D (Greydanus, "Scaling down deep learning", 2020), generated: ten templates of 12 points, made hard to tell.

The published procedure, with its constants, on our own portable random numbers: pad a template with zeros at its end,
dilate to 72 points, scale, rotate, fill what is still zero with correlated noise, add noise, shear, keep 40 points. Its
author reports 32 % accuracy of logistic regression, 68 % of a perceptron, 94 % of a convolutional network.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy  # loads its parts when they are used
import torch
from numpy.typing import NDArray

from subspace import Key
from subspace.study.data.samples import Data, Tensors

Floats = NDArray[np.float64]
TEMPLATES = (
    (5, 6, 6.5, 6.75, 7, 7, 7, 7, 6.75, 6.5, 6, 5),
    (5, 3, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.4, 5.8, 5, 5),
    (5, 6, 6.5, 6.5, 6, 5.25, 4.75, 4, 3.5, 3.5, 4, 5),
    (5, 6, 6.5, 6.5, 6, 5, 5, 6, 6.5, 6.5, 6, 5),
    (5, 4.4, 3.8, 3.2, 2.6, 2.6, 5, 5, 5, 5, 5, 5),
    (5, 3, 3, 3, 3, 5, 6, 6.5, 6.5, 6, 4.5, 5),
    (5, 4, 3.5, 3.25, 3, 3, 3, 3, 3.25, 3.5, 4, 5),
    (5, 7, 7, 6.6, 6.2, 5.8, 5.4, 5, 4.6, 4.2, 5, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 4, 3.5, 3.5, 4, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 5, 5, 4.7, 4.3, 5),
)
PER_CLASS, TRAIN = 500, 4000
PADDING, LENGTH, KEPT = (36, 60), 72, 40
SCALE, ROTATION, CORRELATED, NOISE, SHEAR = 0.4, 48, 0.25, 0.02, 0.75


class Draws(NamedTuple):
    """What is random of n signals: integers (n,) padding and rotation, (n,) scale and shear, (n, 72) both noises."""

    padding: NDArray[np.int64]
    scale: Floats
    rotation: NDArray[np.int64]
    correlated: Floats
    noise: Floats
    shear: Floats


def mnist1d() -> Data:
    """4,000 signals to train on and 1,000 to test on, (n, 1, 40), the same for every run; mean 0, variance 1."""
    key = Key(0).fold("mnist1d")
    labels = np.repeat(np.arange(10), PER_CLASS)
    signals = made(templates()[labels], drawn(key, len(labels)))
    order = key.fold("order").permutation(len(labels))
    signals, labels = (signals[order] - signals.mean()) / signals.std(), labels[order]
    inputs, targets = torch.from_numpy(signals).float().unsqueeze(1), torch.from_numpy(labels)
    return Data(Tensors(inputs[:TRAIN], targets[:TRAIN]), Tensors(inputs[TRAIN:], targets[TRAIN:]), 10)


def templates() -> Floats:
    """(10, 12), each of variance 1 / 36 and starting at 0."""
    x = np.array(TEMPLATES)
    x = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
    started: Floats = (x - x[:, :1]) / 6
    return started


def drawn(key: Key, n: int) -> Draws:
    """The random part of n signals."""
    low, high = PADDING
    return Draws(
        padding=low + key.fold("padding").integers(n, high - low + 1),
        scale=1 + SCALE * (key.fold("scale").uniform(n) - 0.5),
        rotation=key.fold("rotation").integers(n, ROTATION),
        correlated=CORRELATED * key.fold("correlated").normal(n * LENGTH).reshape(n, LENGTH),
        noise=NOISE * key.fold("noise").normal(n * LENGTH).reshape(n, LENGTH),
        shear=SHEAR * (key.fold("shear").uniform(n) - 0.5),
    )


def made(shapes: Floats, draws: Draws) -> Floats:
    """Signals (n, 40) of templates (n, 12)."""
    n, points = shapes.shape
    padded = np.zeros((n, points + PADDING[1]))
    padded[:, :points] = shapes + 1e-8  # so that no point of the template counts as padding
    x = interpolated(padded, points + draws.padding, LENGTH) * draws.scale[:, None]
    x = np.take_along_axis(x, (np.arange(LENGTH) - draws.rotation[:, None]) % LENGTH, axis=1)
    x = np.where(x != 0, x, scipy.ndimage.gaussian_filter1d(draws.correlated, 2, axis=1)) + draws.noise
    x -= draws.shear[:, None] * np.linspace(-0.5, 0.5, LENGTH)
    return interpolated(x, np.full(n, LENGTH), KEPT)


def interpolated(x: Floats, lengths: NDArray[Any], count: int) -> Floats:
    """The first lengths[i] points of row i, linearly interpolated at `count` places evenly between first and last."""
    at = np.linspace(0, 1, count) * (lengths[:, None] - 1)
    below = np.minimum(at.astype(np.int64), lengths[:, None] - 2)
    left, right = (np.take_along_axis(x, below + step, axis=1) for step in (0, 1))
    between: Floats = left + (at - below) * (right - left)
    return between
