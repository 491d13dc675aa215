"""One run: build, re-parametrize, train with Adam, test after every epoch; a pure function of the configuration.

Learning rate: an Adam step moves every trained number by about the learning rate lr, and so w = d + U theta, where U
has unit columns, by lr dim^(1/2). A run at density P trains with learning_rate / P^(1/2): every method then walks at
the speed of the dense network, and nothing is tuned by method. At one fixed rate, sparse runs barely leave their start.

No test figure chooses anything: the accuracy of a run is the one after its last epoch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import subspace
from subspace import Key
from subspace.study import data, models
from subspace.study.config import Run
from subspace.study.methods import METHODS


@dataclass
class Metrics:
    """What a run measured. Lists have one entry per epoch; sizes are those `subspace.summary` counts."""

    weights: int  # numbers in the re-parametrized tensors, N
    dim: int  # numbers trained in place of them
    alpha: int  # how many of these scale an offset
    beside: dict[str, int]  # numbers trained beside them, by kind
    trained_bytes: int
    stored_bytes: int
    learning_rate: float
    train_loss: list[float] = field(default_factory=list)  # mean over the epoch's batches, nats
    test_accuracy: list[float] = field(default_factory=list)  # fraction of the test images
    seconds: float = 0.0  # wall time of building and training


def train(run: Run, report: Callable[[int], None] = lambda epochs: None) -> dict[str, object]:
    """The `Metrics` of a run as a dictionary; `report(epochs done)` is called after each epoch.

    FloatingPointError where the loss stops being finite. No global generator is read or moved.
    """
    images, labels, test_images, test_labels = getattr(data, run.data)()  # loading is not the run's time
    started = time.perf_counter()
    model = getattr(models, run.model)(Key(run.seed).fold("init"))
    model = METHODS[run.method].apply(model, run.density or 1.0, run.seed)
    metrics = measured(model, run)
    optimizer = torch.optim.Adam(model.parameters(), lr=metrics.learning_rate)
    for epoch in range(run.training.epochs):
        losses = []
        for batch in batches(len(images), run.training.batch, Key(run.seed).fold("order").fold(str(epoch))):
            optimizer.zero_grad()
            loss = cross_entropy(model(images[batch]), labels[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(f"the loss must be finite, got {losses[-1]} in epoch {epoch + 1}")
        metrics.train_loss.append(math.fsum(losses) / len(losses))
        metrics.test_accuracy.append(accuracy(model, test_images, test_labels))
        report(epoch + 1)
    metrics.seconds = time.perf_counter() - started
    return asdict(metrics)


def measured(model: nn.Module, run: Run) -> Metrics:
    """What is known before training: sizes, and the learning rate by the rule above."""
    size = subspace.summary(model)
    rate = run.training.learning_rate / math.sqrt(run.density or 1.0)
    return Metrics(size.weights, size.dim, size.alpha, dict(size.beside), size.trained_bytes, size.stored_bytes, rate)


def batches(n: int, size: int, key: Key) -> Iterator[Tensor]:
    """All of range(n) in random order, `size` at a time; the last may be smaller."""
    order = torch.from_numpy(key.permutation(n))
    return (order[start : start + size] for start in range(0, n, size))


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The fraction of the images whose largest logit is at their label."""
    model.eval()
    logits = torch.cat([model(images[start : start + 500]) for start in range(0, len(images), 500)])
    model.train()
    return (logits.argmax(dim=1) == labels).double().mean().item()
