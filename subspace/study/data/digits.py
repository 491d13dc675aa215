"""The digits of scikit-learn: 1,797 of 8 x 8 pixels, the test part of UCI's optical recognition set (Alpaydin 1998)."""

from __future__ import annotations

import torch

from subspace import Key
from subspace.study.data.samples import Data, Tensors
from subspace.study.data.subsets import stratified


def digits() -> Data:
    """1,438 digits to train on and 359 to test on, (n, 1, 8, 8), every class in the same proportion.

    The split is the same for every run. Pixels are shifted and scaled to mean 0 and variance 1 over the training
    images. ValueError where scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise ValueError("scikit-learn must be installed for digits, got none: pip install scikit-learn") from None
    pixels, numbers = load_digits(return_X_y=True)
    train, test = stratified(numbers, test_fraction=0.2, key=Key(0).fold("digits"))
    images = torch.from_numpy(pixels).float().reshape(-1, 1, 8, 8)
    images = (images - images[train].mean()) / images[train].std(correction=0)
    labels = torch.from_numpy(numbers).long()
    return Data(Tensors(images[train], labels[train]), Tensors(images[test], labels[test]), 10)
