"""One run: build, re-parametrize, train, test after every epoch; a pure function of the configuration.

No test figure chooses anything: the accuracy of a run is the one after its last epoch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

import subspace
from subspace import Key
from subspace.study import accounting, data, models
from subspace.study.config import Run
from subspace.study.loop import Loop


@dataclass
class Metrics:
    """What a run measured. Lists have one entry per epoch after U is chosen; sizes are those `subspace.summary` counts.

    FLOPs and bytes are those of `study.accounting`. The rounds of IMP train, so they are part of training here.
    """

    weights: int  # numbers in the re-parametrized tensors, N
    dim: int  # numbers trained in place of them
    alpha: int  # how many of these scale an offset
    beside: dict[str, int]  # numbers trained beside them, by kind
    trained_bytes: int
    learning_rate: float
    train_loss: list[float] = field(default_factory=list)  # mean over the epoch's batches, nats
    test_accuracy: list[float] = field(default_factory=list)  # fraction of the test images
    seconds: float = 0.0  # wall time of building and training
    samples: int = 0  # images trained on, with repetition
    flops_init: int = 0  # to choose U, in all, as computed
    flops_training: float = 0.0  # per sample, the mean over all steps
    flops_final: float = 0.0  # per sample, a forward pass of the trained network
    flops_total: float = 0.0  # to choose U and to train
    flops_dense: float = 0.0  # per sample, a forward and a backward pass that build every W
    stored_init: int = 0  # bytes at the start, with the dense weights where U is chosen by them
    stored_training: int = 0  # bytes, the most at the end of an epoch
    stored_bytes: int = 0  # of the trained network


def train(run: Run, report: Callable[[int], None] = lambda epochs: None) -> dict[str, object]:
    """The `Metrics` of a run as a dictionary; `report(epochs done)` is called after each epoch.

    FloatingPointError where the loss stops being finite. No global generator is read or moved.
    """
    digits = getattr(data, run.data)()  # loading is not the run's time
    started = time.perf_counter()
    loop, density = Loop(run, digits, report), run.density or 1.0
    model = loop.choose(getattr(models, run.model)(Key(run.seed).fold("init")))
    metrics = measured(model, loop.rate(density))
    for loss in loop.epochs(model, density):
        metrics.train_loss.append(loss)
        metrics.test_accuracy.append(accuracy(model, digits.test_images, digits.test_labels))
    metrics.seconds = time.perf_counter() - started
    account(metrics, model, loop)
    return asdict(metrics)


def measured(model: nn.Module, rate: float) -> Metrics:
    """What is known before training."""
    size = subspace.summary(model)
    return Metrics(size.weights, size.dim, size.alpha, dict(size.beside), size.trained_bytes, rate)


def account(metrics: Metrics, model: nn.Module, loop: Loop) -> None:
    """What is known after it."""
    batch = min(loop.run.training.batch, len(loop.data.train_images))
    metrics.samples = loop.samples
    metrics.flops_init = loop.flops_init
    metrics.flops_training = loop.flops / loop.samples
    metrics.flops_final = accounting.flops(model, loop.data.train_images[:1]).forward
    metrics.flops_total = loop.flops_init + loop.flops
    metrics.stored_init = loop.stored_init
    metrics.stored_training = loop.stored
    metrics.stored_bytes = accounting.stored(model)
    metrics.flops_dense = accounting.computed(subspace.unstructured(model), loop.setting.loss(batch), batch)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The fraction of the images whose largest logit is at their label."""
    model.eval()
    logits = torch.cat([model(images[start : start + 500]) for start in range(0, len(images), 500)])
    model.train()
    return (logits.argmax(dim=1) == labels).double().mean().item()
