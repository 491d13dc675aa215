"""What a run gives its method: the exact budget, a seed, training data to choose U by, and the training loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, nll_loss

from subspace import Key, methods
from subspace.methods import LotteryTicket, Objective
from subspace.study.data import Samples

Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES: Mapping[str, Loss] = {"cross_entropy": cross_entropy, "nll": nll_loss}


@dataclass(frozen=True)
class Setting:
    """What a method is given: its budget, a seed, data, and the run's training loop.

    size: {"density": fraction} or {"dim": number}, what a recipe takes; empty for ordinary training. density: the same
    as a fraction of the weights. options: the method's own, by name. samples: to train on. steps: the optimizer's.
    fit(model, epochs, after_step) trains a model in place as the run trains its last one, or for other epochs, and
    calls after_step after every step. resume(search) brings a search for a lottery ticket to where the run was
    interrupted, and stores it from then on.
    """

    size: Mapping[str, Any]
    density: float
    seed: int
    options: Mapping[str, Any]
    samples: Samples
    steps: int
    fit: Callable[..., object]
    resume: Callable[[LotteryTicket], object] = lambda search: None
    device: torch.device | None = None

    def loss(self, samples: float, name: str = "cross_entropy", batch: int = 0) -> Objective:
        """One of `LOSSES` on one batch drawn from the seed, the same at every call: the usual data of a saliency.

        batch: another number for another batch.
        """
        key = self._key.fold(f"batch {batch}") if batch else self._key
        return self._loss(torch.from_numpy(key.permutation(len(self.samples))[: int(samples)]), LOSSES[name])

    def fresh_loss(self, samples: float, name: str = "cross_entropy") -> Objective:
        """One of `LOSSES`, at every call on the next batch drawn from the seed."""
        number = count()
        return lambda net: self.loss(samples, name, next(number))(net)

    def balanced_loss(self, per_class: float, temperature: float) -> Objective:
        """The cross-entropy of logits / temperature on `per_class` samples of every class: the data of GraSP."""
        if self.samples.labels.ndim > 1:
            raise ValueError(
                f"labels must be one a sample to take as many of every class, got {self.samples.labels.shape[1]}"
            )
        places = []
        for label in sorted(set(self.samples.labels.tolist())):
            members = (self.samples.labels == label).nonzero().squeeze(1)
            drawn = self._key.fold(str(label)).permutation(len(members))[: int(per_class)]
            places.append(members[torch.from_numpy(drawn)])
        return self._loss(torch.cat(places), lambda logits, labels: cross_entropy(logits / temperature, labels))

    def flow(self) -> Objective:
        """The objective of SynFlow, for inputs of these shapes; no data."""
        return methods.flow(1, *self.samples.batch(torch.zeros(1, dtype=torch.long))[0].shape[1:])

    @property
    def by_authors(self) -> bool:
        """Whether the method follows Price and Tanner's code where that differs (`methods.authors`)."""
        return self.options.get("rule") == "authors"

    @property
    def _key(self) -> Key:
        return Key(self.seed).fold("objective")

    def _loss(self, places: Tensor, loss: Loss) -> Objective:
        inputs, labels = (tensor.to(device=self.device) for tensor in self.samples.batch(places))
        return lambda net: loss(net(inputs), labels)
