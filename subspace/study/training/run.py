"""One run: build, re-parametrize, train, test after every epoch; a pure function of the configuration.

No test figure chooses anything: the accuracy of a run is the one after its last epoch.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

import subspace
from subspace import Key
from subspace.study import data, models
from subspace.study.data import Samples
from subspace.study.distributed.team import Team
from subspace.study.entries.seeding import seeded
from subspace.study.methods import method
from subspace.study.spec.study import Run
from subspace.study.training import costs as accounting
from subspace.study.training.jacobian import measured
from subspace.study.training.loop import Keeper, Loop
from subspace.study.training.metrics import Metrics
from subspace.study.training.state import State, restore_model


class Nowhere:
    """A keeper of nothing: a run that begins at the start and, if it is interrupted, begins there again."""

    def load(self) -> State | None:
        return None

    def save(self, state: State) -> None:
        pass


def train(run: Run, keeper: Keeper | None = None) -> dict[str, Any]:
    """The `Metrics` of a run as a dictionary; keeper: where it keeps what it can be resumed from, after every epoch.

    FloatingPointError where the loss stops being finite, ValueError for what the configuration names and there is not.
    No global generator is read, nor moved in the end.
    """
    with Team.joined(run) as team:
        whole, key = data.load(run.data), Key(run.seed)  # loading is not the run's time
        samples, validation = held_apart(whole.train, run.train.validation)
        loop = Loop(run, whole._replace(train=samples), validation, team, keeper or Nowhere())
        with seeded(key.fold("generators")):
            model = choose(loop, models.build(run.model, whole, key.fold("init")).to(loop.device))
        spectrum(loop, model, "initial")
        loop.train(model, loop.setting().density)
        spectrum(loop, model, "trained")
        return asdict(finished(loop, model))


def held_apart(samples: Samples, share: float) -> tuple[Samples, Samples | None]:
    """The samples to train on, and those to validate on: the same share, at random, of every run. None for no share."""
    if not share:
        return samples, None
    order = torch.from_numpy(Key(0).fold("validation").permutation(len(samples)))
    apart = round(share * len(samples))
    if not 0 < apart < len(samples):
        raise ValueError(f"validation must leave some of {len(samples)} samples on either side, got {share}")
    return samples.subset(order[apart:].sort().values), samples.subset(order[:apart].sort().values)


def choose(loop: Loop, dense: nn.Module) -> nn.Module:
    """The dense network re-parametrized by the run's method, or as it was when the run was interrupted."""
    chosen, metrics = method(loop.run.method.name), loop.metrics
    metrics.classes = loop.data.num_classes
    metrics.weights = sum(weight.numel() for *_, weight in subspace.targets(dense).values())
    loop.dense = accounting.stored(dense)
    metrics.reduced_bytes_dense = loop.team.gradient_bytes(dense)
    if loop.resumed and loop.resumed["search"] is None:
        return restore_model(dense, loop.resumed["model"])
    with loop.meter:
        model = chosen.apply(dense, loop.setting())
    loop.search = None
    loop.team.agree(model)
    size = subspace.summary(model)
    metrics.dim, metrics.alpha, metrics.beside = size.dim, size.alpha, dict(size.beside)
    metrics.trained_bytes, metrics.flops_init = size.trained_bytes, loop.meter.flops
    metrics.stored_init = accounting.stored(model) + loop.dense * chosen.from_dense
    return model


def spectrum(loop: Loop, model: nn.Module, when: str) -> None:
    """Keep the singular values of the Jacobian where the run asks for them; that is not the run's time."""
    if (count := loop.run.train.jacobian) and when not in loop.metrics.spectra:
        start = time.perf_counter()
        loop.metrics.spectra[when] = measured(model, loop.data, count, loop.device)
        loop.mark += time.perf_counter() - start


def finished(loop: Loop, model: nn.Module) -> Metrics:
    """The metrics with what is known after training."""
    metrics, inputs = loop.metrics, loop.data.train.batch(torch.zeros(1, dtype=torch.long))[0].to(loop.device)
    metrics.flops_training = metrics.flops_total / metrics.samples
    metrics.flops_total += metrics.flops_init
    metrics.flops_forward = accounting.flops(model, inputs).forward
    metrics.tensors = accounting.tensors(model)
    metrics.stored_bytes = accounting.stored(model)
    metrics.file_bytes, metrics.file_bytes_dense = accounting.file_bytes(model), accounting.file_bytes_dense(model)
    batch = min(loop.run.train.batch, len(loop.data.train))
    dense = subspace.unstructured(model)
    metrics.flops_dense_training = accounting.computed(dense, loop.setting().loss(batch), batch)
    metrics.flops_dense_forward = accounting.computed_forward(dense, inputs)
    return metrics
