"""What a run offers its method: the exact budget, a seed, training data to choose U by, and the training loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from subspace import Key, methods
from subspace.methods import Objective


@dataclass(frozen=True)
class Setting:
    """A method's part of a run: images (n, ...) and labels (n,) are those to train on, steps the optimizer's.

    options are the method's own, by name; fit(model) trains a model as the run's last training does, in place.
    """

    density: float
    seed: int
    options: Mapping[str, float]
    images: Tensor
    labels: Tensor
    steps: int
    fit: Callable[[nn.Module], object]

    def loss(self, samples: float) -> Objective:
        """The cross-entropy on one batch drawn from the seed, the same at every call: the usual data of a saliency."""
        return self._loss(self._key.permutation(len(self.images))[: int(samples)].tolist())

    def balanced_loss(self, per_class: float, temperature: float) -> Objective:
        """The cross-entropy of logits / temperature on so many samples of every class: the data of GraSP."""
        places = []
        for label in sorted(set(self.labels.tolist())):
            members = (self.labels == label).nonzero().squeeze(1)
            drawn = self._key.fold(str(label)).permutation(len(members))[: int(per_class)]
            places += members[torch.from_numpy(drawn)].tolist()
        return self._loss(places, temperature)

    def flow(self) -> Objective:
        """The objective of SynFlow, for images of these shapes; no data."""
        return methods.flow(1, *self.images.shape[1:])

    @property
    def _key(self) -> Key:
        return Key(self.seed).fold("objective")

    def _loss(self, places: list[int], temperature: float = 1.0) -> Objective:
        images, labels = self.images[places], self.labels[places]
        return lambda net: cross_entropy(net(images) / temperature, labels)
