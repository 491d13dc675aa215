"""The training loop: Adam, an order of the images that the run's seed fixes, and the method's mover where it has one.

Learning rate: an Adam step moves every trained number by about the learning rate lr, and so w = d + U theta, where U
has unit columns, by lr dim^(1/2). A network at density P trains with learning_rate / P^(1/2): every method then walks
at the speed of the dense network, and nothing is tuned by method. At one fixed rate, sparse runs barely leave their
start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import subspace
from subspace import Key
from subspace.study import accounting
from subspace.study.config import Run
from subspace.study.data import Data
from subspace.study.methods import METHODS
from subspace.study.setting import Setting


class Loop:
    """Trains the networks of one run, those of the rounds that choose U included, and counts what that takes.

    flops and samples: of all training, as `accounting` counts and with repetition; done: epochs; stored: the most
    bytes at the end of one. flops_init and stored_init: of choosing U, the rounds' training apart.
    """

    def __init__(self, run: Run, data: Data, report: Callable[[int], None]) -> None:
        self.run, self.data, self.report = run, data, report
        self.flops, self.samples, self.done, self.stored = 0.0, 0, 0, 0
        self.dense, self.meter = 0, accounting.Meter()
        self.setting = Setting(
            density=run.density or 1.0,
            seed=run.seed,
            options=dict(run.options or ()),
            images=data.train_images,
            labels=data.train_labels,
            steps=run.training.epochs * math.ceil(len(data.train_images) / run.training.batch),
            fit=self.fit,
        )

    def rate(self, density: float) -> float:
        """Adam's, by the rule above."""
        return self.run.training.learning_rate / math.sqrt(density)

    def choose(self, model: nn.Module) -> nn.Module:
        """Re-parametrize the dense network by the run's method."""
        method = METHODS[self.run.method]
        self.dense = accounting.stored(model)
        with self.meter:
            model = method.apply(model, self.setting)
        self.flops_init = self.meter.flops
        self.stored_init = accounting.stored(model) + self.dense * method.from_dense
        return model

    def fit(self, model: nn.Module) -> None:
        """Train a network of a round, while the dense network is kept to rewind to."""
        with self.meter.paused():
            for _ in self.epochs(model, subspace.summary(model).density or 1.0, beside=self.dense):
                pass

    def epochs(self, model: nn.Module, density: float, beside: int = 0) -> Iterator[float]:
        """Train by the learning rate of this density, and yield the mean loss in nats after every epoch.

        beside: bytes stored beside the model meanwhile. FloatingPointError where the loss stops being finite.
        """
        mover_of = METHODS[self.run.method].mover
        optimizer = torch.optim.Adam(model.parameters(), lr=self.rate(density))
        mover = mover_of(model, optimizer, self.setting) if mover_of else None
        if any(subspace.subspaces(model)):
            subspace.structured(model)
        cost = accounting.flops(model, self.data.train_images[:1])
        for epoch in range(self.run.training.epochs):
            losses = []
            for images, labels in self.batches(epoch):

                def objective(net: nn.Module, images: Tensor = images, labels: Tensor = labels) -> Tensor:
                    self.flops += len(images) * cost.growth
                    return cross_entropy(net(images), labels)

                optimizer.zero_grad()
                loss = cross_entropy(model(images), labels)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                self.flops += cost.step + len(images) * cost.training
                self.samples += len(images)
                losses.append(loss.item())
                if not math.isfinite(losses[-1]):
                    raise FloatingPointError(f"the loss must be finite, got {losses[-1]} in epoch {self.done + 1}")
                if mover:
                    mover.step(objective)
            self.stored = max(self.stored, beside + accounting.stored(model))
            self.done += 1
            yield math.fsum(losses) / len(losses)
            self.report(self.done)

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The training images and labels of an epoch, in batches."""
        key = Key(self.run.seed).fold("order").fold(str(epoch))
        for places in batches(len(self.data.train_images), self.run.training.batch, key):
            yield self.data.train_images[places], self.data.train_labels[places]


def batches(n: int, size: int, key: Key) -> Iterator[Tensor]:
    """All of range(n) in random order, `size` at a time; the last may be smaller."""
    order = torch.from_numpy(key.permutation(n))
    return (order[start : start + size] for start in range(0, n, size))
