"""The training loop: an optimizer, an order of the samples that the run's seed fixes, and the method's mover if any.

Learning rate: an Adam step moves every trained number by about the learning rate lr, and so w = d + U theta, where U
has unit columns, by lr dim^(1/2). With scaling = "root", a network at density P trains with learning_rate / P^(1/2):
every method then walks at the speed of the dense network, and nothing is tuned by method. At one fixed rate, sparse
runs barely leave their start.

After every epoch all that the loop goes on from is stored: on one thread, a run that was killed and resumed ends with
the same bits as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

import subspace
from subspace import Key
from subspace.methods import GradualPruning, LotteryTicket, Mover, Objective
from subspace.study.data import Data, Samples
from subspace.study.entries.entry import Choice
from subspace.study.entries.options import instantiate
from subspace.study.entries.seeding import seeded
from subspace.study.methods import method
from subspace.study.methods.setting import Setting
from subspace.study.spec.study import Run
from subspace.study.training import costs
from subspace.study.training.peak_memory import Peak
from subspace.study.training.state import RunState, State, StateStore, restoring
from subspace.study.training.team import Team


@dataclass
class Parts:
    """What trains a network: its optimizer, schedule and mover."""

    optimizer: Optimizer
    schedule: Any = None
    mover: Mover | GradualPruning | None = None

    def state_dict(self) -> dict[str, State]:
        """The states of those that are there, by name."""
        return {name: part.state_dict() for name, part in vars(self).items() if part is not None}

    def load_state_dict(self, states: dict[str, State]) -> None:
        """Go on from a `state_dict`."""
        for name, state in states.items():
            getattr(self, name).load_state_dict(state)


class Loop:
    """Trains the networks of one run, those of the rounds that choose U included, and counts what that takes.

    state: how far the run has come. clock: the time up to which the run's seconds are counted. meter: FLOPs of choosing
    U. data: without the samples for validation, which are None where nothing is held apart.
    """

    def __init__(self, run: Run, data: Data, validation: Samples | None, team: Team, states: StateStore) -> None:
        self.run, self.data, self.validation, self.team, self.states = run, data, validation, team, states
        self.state = RunState.of(states.load())
        self.device = team.device(run.train.device)
        self.meter, self.clock = costs.Meter(), time.perf_counter()

    def setting(self) -> Setting:
        """What the method is given."""
        run, dim = self.run, self.run.dim or self.state.fitting
        size = {name: value for name, value in (("density", run.density), ("dim", dim)) if value}
        return Setting(
            size=size,
            density=dim / self.state.metrics.weights if dim else run.density or 1.0,
            seed=run.seed,
            options=run.method.options,
            samples=self.data.train,
            steps=run.train.epochs * math.ceil(len(self.data.train) / run.train.batch),
            fit=self.fit,
            resume=self.resume,
            device=self.device,
        )

    def resume(self, search: LotteryTicket) -> None:
        """Put a search where the run was interrupted; from now on it is stored with every epoch."""
        if self.state.saved:
            with restoring():
                search.load_state_dict(self.state.saved["search"])
        self.state.search = search

    def fit(self, model: nn.Module, epochs: int | None = None, after_step: Callable[[], object] | None = None) -> None:
        """Train a network of a round, while the dense network is held to rewind to; epochs: None for the run's."""
        with self.meter.paused():
            self.train(model, subspace.summary(model).density or 1.0, is_final=False, epochs=epochs, after=after_step)

    def train(
        self,
        model: nn.Module,
        density: float,
        is_final: bool = True,
        epochs: int | None = None,
        after: Callable[[], object] | None = None,
    ) -> None:
        """Train at the learning rate of this density; is_final: not a round, so that every epoch ends with a test.

        after: is called after every step. FloatingPointError where the loss stops being finite.
        """
        parts = self.prepare(model, density, after)
        first = self.restore(model, parts, is_final)
        if self.run.train.structured and any(subspace.subspaces(model)):
            subspace.structured(model)
        cost = costs.flops(model, self.data.train.batch(torch.zeros(1, dtype=torch.long))[0].to(self.device))
        peak = self.peak(model, parts, first)
        for number in range(first, self.run.train.epochs if epochs is None else epochs):
            rate = parts.optimizer.param_groups[0]["lr"]
            key = Key(self.run.seed).fold("generators").fold(str(len(self.state.done)))
            with seeded(self.team.key(key)):
                trained = self.epoch(model, number, cost, peak, parts)
            if parts.schedule:
                parts.schedule.step()
            self.team.follow(model)
            self.team.check_same(model)
            self.measure(model, peak, 0 if is_final else self.state.dense_bytes)
            self.close({**trained, **self.test(model, is_final), "learning_rate": rate}, is_final)
            if is_final or self.state.search:  # a round of a search that cannot be resumed is lost
                self.states.save(self.state.saveable(model, parts.state_dict(), number + 1, is_final))
        if parts.mover and is_final:
            parts.mover.cut()

    def prepare(self, model: nn.Module, density: float, after: Callable[[], object] | None = None) -> Parts:
        """The optimizer, schedule and mover of a training, as at its start."""
        run, train = self.run, self.run.train
        rate = train.learning_rate / math.sqrt(density) if train.scaling == "root" else train.learning_rate
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError(f"a network must have numbers that train, got none of {run.model} by {run.label}")
        optimizer = instantiate(torch.optim, Choice.of(train.optimizer, "optimizer"), model.parameters(), lr=rate)
        if after:
            optimizer.register_step_post_hook(lambda *_: after())
        parts = Parts(optimizer)
        if train.schedule:
            schedule = Choice.of(train.schedule, "schedule")
            parts.schedule = instantiate(torch.optim.lr_scheduler, schedule, parts.optimizer)
        if moving := method(run.method.name).mover:
            parts.mover = moving(model, parts.optimizer, self.setting())
        self.state.metrics.learning_rate = self.state.metrics.learning_rate or rate
        return parts

    def restore(self, model: nn.Module, parts: Parts, is_final: bool) -> int:
        """Bring a training that was interrupted where it was; returns how many epochs it has done."""
        if (saved := self.state.saved) is None:
            return 0
        self.state.saved = None
        with restoring():
            if not is_final:
                model.load_state_dict(saved["model"])
            parts.load_state_dict(saved["parts"])
            return int(saved["epochs"])

    def peak(self, model: nn.Module, parts: Parts, first: int) -> Peak:
        """What measures the memory of the first two steps, and of the first that moves U."""
        if self.team.size > 1 and self.device.type == "cpu":  # gloo's threads release some, at which the profiler fails
            return Peak(model, parts.optimizer, steps=())
        moves = [parts.mover.delta_t - 1 - parts.mover.steps] if parts.mover else []
        return Peak(model, parts.optimizer, steps=moves if first else [0, 1, *moves])

    def epoch(self, model: nn.Module, number: int, cost: costs.Flops, peak: Peak, parts: Parts) -> dict[str, float]:
        """One pass over the training samples: the mean loss of the batches, and the accuracy on them as met."""
        losses, right, net, metrics = [], 0.0, self.team.wrap(model), self.state.metrics
        key = Key(self.run.seed).fold("order").fold(str(number))
        order = list(batches(len(self.data.train), self.run.train.batch, key))
        augment = key.fold("augment")
        mine = self.data.train.batches([self.team.shard(places) for places in order], augment)
        for places, batch in zip(order, mine, strict=True):
            inputs, labels = (tensor.to(self.device, non_blocking=True) for tensor in batch)
            with peak.step(inputs, labels):
                parts.optimizer.zero_grad()
                logits = net(inputs)
                loss = cross_entropy(logits, labels) * self.team.weight(len(labels), len(places))
                loss.backward()  # type: ignore[no-untyped-call]
                parts.optimizer.step()
                if parts.mover:
                    parts.mover.step(self.objective((inputs, labels), places, augment, cost))
                    if parts.mover.steps % parts.mover.delta_t == 0:
                        self.team.follow(model, parts.optimizer)
            metrics.flops_total += cost.step + len(places) * cost.training
            metrics.samples += len(places)
            losses.append(loss.item())
            met_by = self.team.size if len(places) < self.team.size else 1  # how many processes have the same samples
            right += int((logits.argmax(dim=1) == labels).sum()) / met_by
            if self.team.size == 1:  # one of several processes must not leave the others waiting
                self.require_finite(losses[-1])
        mean = self.require_finite(self.team.total(math.fsum(losses)) / len(losses))
        return {"train_loss": mean, "train_accuracy": self.team.total(right) / self.data.train.labels.numel()}

    def require_finite(self, loss: float) -> float:
        """The loss; FloatingPointError if it is not finite."""
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss must be finite, got {loss} in epoch {len(self.state.done) + 1}")
        return loss

    def objective(self, batch: tuple[Tensor, Tensor], places: Tensor, key: Key, cost: costs.Flops) -> Objective:
        """The loss on the whole batch, by which U is moved; batch: this process's part of it."""

        def objective(net: nn.Module) -> Tensor:
            whole = batch if self.team.size == 1 else next(self.data.train.batches([places], key))
            self.state.metrics.flops_total += len(places) * cost.growth
            return cross_entropy(net(whole[0].to(self.device)), whole[1].to(self.device))

        return objective

    def test(self, model: nn.Module, is_final: bool) -> dict[str, float | None]:
        """The accuracy on the test samples and on those for validation, and the loss on the former; None in a round."""
        if not is_final:
            return {"test_accuracy": None, "validation_accuracy": None, "test_loss": None}
        with subspace.rounded(model, self.run.train.theta_bits or None):
            right, loss = evaluate(model, self.data.test, self.device)
            apart = None if self.validation is None else evaluate(model, self.validation, self.device)[0]
        return {
            "test_accuracy": right,
            "validation_accuracy": apart,
            "test_loss": loss if math.isfinite(loss) else None,
        }

    def measure(self, model: nn.Module, peak: Peak, dense: int) -> None:
        """Note the most bytes so far; dense: those of a network that is held to rewind to."""
        metrics = self.state.metrics
        metrics.stored_training = max(metrics.stored_training, costs.stored(model) + dense)
        metrics.reduced_bytes = self.team.reduced_bytes
        if peak.bytes:
            metrics.peak_bytes = max(metrics.peak_bytes or 0, peak.bytes + dense)

    def close(self, figures: dict[str, Any], is_final: bool) -> None:
        """Note an epoch, and the time up to now."""
        now, state = time.perf_counter(), self.state
        state.done.append({"epoch": len(state.done) + 1, **figures, "seconds": now - self.clock})
        state.metrics.seconds += now - self.clock
        self.clock = now
        if is_final:
            state.metrics.epochs.append(state.done[-1] | {"epoch": len(state.metrics.epochs) + 1})


def batches(n: int, size: int, key: Key) -> Iterator[Tensor]:
    """All of range(n) in random order, `size` at a time; the last may be smaller."""
    order = torch.from_numpy(key.permutation(n))
    return (order[start : start + size] for start in range(0, n, size))


@torch.no_grad()
def evaluate(model: nn.Module, samples: Samples, device: torch.device, size: int = 500) -> tuple[float, float]:
    """The fraction of the labels that have the largest logit, and the mean cross-entropy of all, in nats."""
    model.eval()
    right, losses = 0, []
    for start in range(0, len(samples), size):
        inputs, labels = samples.batch(torch.arange(start, min(start + size, len(samples))))
        logits, wanted = model(inputs.to(device)), labels.to(device)
        right += int((logits.argmax(dim=1) == wanted).sum())
        losses.append(float(cross_entropy(logits.double(), wanted, reduction="sum")))
    model.train()
    return right / samples.labels.numel(), math.fsum(losses) / samples.labels.numel()
