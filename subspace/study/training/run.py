"""One run: build, re-parametrize, train, test after every epoch; a pure function of the configuration.

No test figure chooses anything: the accuracy of a run is the one after its last epoch.
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn

import subspace
from subspace import Key
from subspace.study import data, models
from subspace.study.data import Samples
from subspace.study.entries.seeding import seeded
from subspace.study.methods import method
from subspace.study.spec.study import Run
from subspace.study.training import costs
from subspace.study.training.fitting import largest_dim
from subspace.study.training.jacobian import jacobian_spectra
from subspace.study.training.loop import Loop
from subspace.study.training.metrics import Metrics
from subspace.study.training.processes import train_alone, train_together
from subspace.study.training.state import StateStore, UnfitState, restore_model, restore_state
from subspace.study.training.team import Team


def train(run: Run, states: StateStore | None = None) -> dict[str, Any]:
    """Train a run.

    Args:
        run: the configuration; with train.processes above 1, as many new processes train it together.
        states: where the run keeps, after every epoch, what it can be resumed from; nowhere if it is None.

    Returns:
        The `Metrics` of the run as a dictionary.

    Raises:
        FloatingPointError: the loss stops being finite.
        ValueError: the configuration names something that there is not.

    No global generator is read, nor moved in the end.
    """
    states = states or StateStore()
    start = train_together if run.train.processes > 1 else train_alone
    try:
        return start(train_in, run, states)
    except UnfitState as error:
        states.reject(str(error))
        return start(train_in, run, states)


def train_in(run: Run, states: StateStore, team: Team) -> dict[str, Any]:
    """Train a run in one of the team's processes."""
    whole, key = data.load(run.data), Key(run.seed)  # loading is not the run's time
    samples, validation = held_apart(whole.train, run.train.validation)
    loop = Loop(run, whole._replace(train=samples), validation, team, states)
    with seeded(key.fold("generators")):
        model = choose(loop, models.build(run.model, whole, key.fold("init")).to(loop.device))
    measure_spectra(loop, model, "initial")
    loop.train(model, 1.0 if method(run.method.name).prunes else loop.setting().density)
    measure_spectra(loop, model, "trained")
    return asdict(complete(loop, model))


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
    chosen, state, metrics = method(loop.run.method.name), loop.state, loop.state.metrics
    metrics.classes = loop.data.num_classes
    metrics.weights = sum(weight.numel() for *_, weight in subspace.targets(dense).values())
    state.dense_bytes = costs.stored(dense)
    metrics.reduced_bytes_dense = loop.team.gradient_bytes(dense)
    if loop.run.bytes:
        guessing = replace(loop.setting(), fit=lambda *_, **__: None)  # a file's size is that of any training's end
        state.fitting = largest_dim(dense, guessing, chosen, loop.run.bytes, loop.run.train.theta_bits)
    kept = state.saved["model"] if state.saved and state.saved["search"] is None else None
    if isinstance(kept, torch.Tensor):
        return restore_model(dense, kept)
    if kept is not None:
        return restore_state(chosen.apply(dense, loop.setting()), kept)
    with loop.meter:
        model = chosen.apply(dense, loop.setting())
    state.search = None
    loop.team.check_same(model)
    size = subspace.summary(model)
    metrics.dim, metrics.alpha, metrics.beside = size.dim, size.alpha, dict(size.beside)
    metrics.trained_bytes, metrics.flops_init = size.trained_bytes, loop.meter.flops
    metrics.stored_init = costs.stored(model) + state.dense_bytes * chosen.from_dense
    return model


def measure_spectra(loop: Loop, model: nn.Module, when: str) -> None:
    """Note the singular values of the Jacobian where the run asks for them; that is not the run's time."""
    spectra = loop.state.metrics.spectra
    if (count := loop.run.train.jacobian) and when not in spectra:
        start = time.perf_counter()
        spectra[when] = jacobian_spectra(model, loop.data, count, loop.device)
        loop.clock += time.perf_counter() - start


def complete(loop: Loop, model: nn.Module) -> Metrics:
    """The metrics with what is known after training."""
    metrics, inputs = loop.state.metrics, loop.data.train.batch(torch.zeros(1, dtype=torch.long))[0].to(loop.device)
    size, bits = subspace.summary(model), loop.run.train.theta_bits
    metrics.dim, metrics.alpha = size.dim, size.alpha
    metrics.flops_training = metrics.flops_total / metrics.samples
    metrics.flops_total += metrics.flops_init
    metrics.flops_forward = costs.flops(model, inputs).forward
    metrics.tensors = costs.tensors(model)
    metrics.stored_bytes = costs.stored(model)
    metrics.file_bytes, metrics.file_bytes_dense = costs.file_bytes(model, bits), costs.file_bytes_dense(model)
    batch = min(loop.run.train.batch, len(loop.data.train))
    metrics.activation_bytes = costs.activation_bytes(model, loop.setting().loss(batch))
    if loop.run.bytes and metrics.file_bytes > loop.run.bytes:
        raise ValueError(f"the file must have at most {loop.run.bytes:,} bytes, got {metrics.file_bytes:,}")
    dense = subspace.unstructured(model)
    metrics.flops_dense_training = costs.computed(dense, loop.setting().loss(batch), batch)
    metrics.flops_dense_forward = costs.computed_forward(dense, inputs)
    return metrics
