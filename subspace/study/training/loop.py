"""The training loop: an optimizer, an order of the samples that the run's seed fixes, the method's mover if it has one.

Learning rate: an Adam step moves every trained number by about the learning rate lr, and so w = d + U theta, where U
has unit columns, by lr dim^(1/2). With scaling = "root", a network at density P trains with learning_rate / P^(1/2):
every method then walks at the speed of the dense network, and nothing is tuned by method. At one fixed rate, sparse
runs barely leave their start.

After every epoch all that the loop goes on from is kept: on one thread, a run that was killed and resumed ends with the
same bits as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import subspace
from subspace import Key
from subspace.methods import LotteryTicket, Objective
from subspace.study.data import Data, Samples
from subspace.study.distributed.team import Team
from subspace.study.entries.entry import Choice
from subspace.study.entries.seeding import seeded
from subspace.study.entries.torch_classes import made
from subspace.study.methods import method
from subspace.study.methods.setting import Setting
from subspace.study.spec.study import Run
from subspace.study.training import costs as accounting
from subspace.study.training.metrics import Metrics
from subspace.study.training.peak_memory import Peak
from subspace.study.training.state import State, model_bytes


class Keeper(Protocol):
    """Where a run keeps what it goes on from."""

    def load(self) -> State | None:
        """What was kept last; None at the start."""

    def save(self, state: State) -> None:
        """Keep it in place of what was kept before; state["done"] has the figures of all epochs so far."""


class Loop:
    """Trains the networks of one run, those of the rounds that choose U included, and counts what that takes.

    metrics: so far; flops_total is of training alone meanwhile. done: the figures of every epoch, those of rounds
    included: "epoch" (from 1, in all), "train_loss" (nats, the mean over the batches), "train_accuracy" (a fraction, of
    the batches as they were met), "test_accuracy" and "validation_accuracy" (fractions, None in a round and where
    nothing is held apart), "learning_rate" and "seconds".
    search: for a lottery ticket, while it is on. dense: bytes of the network that it rewinds to.
    """

    def __init__(self, run: Run, data: Data, validation: Samples | None, team: Team, keeper: Keeper) -> None:
        self.run, self.data, self.validation, self.team, self.keeper = run, data, validation, team, keeper
        self.device = team.device(run.train.device)
        self.resumed: State | None = team.share(keeper.load())
        state = self.resumed or {"metrics": {}, "done": []}
        self.metrics, self.done = Metrics(**state["metrics"]), list[dict[str, Any]](state["done"])
        self.search: LotteryTicket | None = None
        self.dense, self.meter, self.mark = 0, accounting.Meter(), time.perf_counter()

    def setting(self) -> Setting:
        """What the method is offered."""
        run = self.run
        size = {name: value for name, value in (("density", run.density), ("dim", run.dim)) if value is not None}
        return Setting(
            size=size,
            density=run.dim / self.metrics.weights if run.dim else run.density or 1.0,
            seed=run.seed,
            options=run.method.options,
            samples=self.data.train,
            steps=run.train.epochs * math.ceil(len(self.data.train) / run.train.batch),
            fit=self.fit,
            resume=self.resume,
            device=self.device,
        )

    def resume(self, search: LotteryTicket) -> None:
        """Put a search where the run was interrupted; from now on it is kept with every epoch."""
        if self.resumed:
            search.load_state_dict(self.resumed["search"])
        self.search = search

    def fit(self, model: nn.Module) -> None:
        """Train a network of a round, while the dense network is kept to rewind to."""
        with self.meter.paused():
            self.train(model, subspace.summary(model).density or 1.0, last=False)

    def train(self, model: nn.Module, density: float, last: bool = True) -> None:
        """Train at the learning rate of this density; `last`: not a round, so that every epoch ends with a test.

        FloatingPointError where the loss stops being finite.
        """
        rate = self.run.train.learning_rate
        rate = rate / math.sqrt(density) if self.run.train.scaling == "root" else rate
        optimizer = made(torch.optim, Choice.of(self.run.train.optimizer, "optimizer"), model.parameters(), lr=rate)
        parts: dict[str, Any] = {"optimizer": optimizer}
        if self.run.train.schedule:
            schedule = Choice.of(self.run.train.schedule, "schedule")
            parts["schedule"] = made(torch.optim.lr_scheduler, schedule, optimizer)
        if moving := method(self.run.method.name).mover:
            parts["mover"] = mover = moving(model, optimizer, self.setting())
            mover.grow = self.team.decided(mover.grow)  # type: ignore[method-assign]
        first = self.restore(model, parts, last)
        self.metrics.learning_rate = self.metrics.learning_rate or rate
        if self.run.train.structured and any(subspace.subspaces(model)):
            subspace.structured(model)
        cost = accounting.flops(model, self.data.train.batch(torch.zeros(1, dtype=torch.long))[0].to(self.device))
        due = [mover.delta_t - 1 - mover.steps] if moving else []  # the first step that moves U
        # torch's profiler, which watches a CPU's memory, may crash where gloo's threads release some meanwhile
        watched = self.team.size == 1 or self.device.type == "cuda"
        peak = Peak(model, optimizer, steps=(due if first else [0, 1, *due]) if watched else ())
        for number in range(first, self.run.train.epochs):
            rate = optimizer.param_groups[0]["lr"]
            key = Key(self.run.seed).fold("generators").fold(str(len(self.done)))
            with seeded(self.team.key(key)):
                trained = self.epoch(self.team.wrap(model), number, cost, peak, optimizer, parts.get("mover"))
            if "schedule" in parts:
                parts["schedule"].step()
            self.team.settle(model)
            self.team.agree(model)
            beside = 0 if last else self.dense  # it is there to be rewound to
            self.metrics.stored_training = max(self.metrics.stored_training, accounting.stored(model) + beside)
            self.metrics.reduced_bytes = self.team.reduced_bytes
            if watched:
                self.metrics.peak_bytes = max(self.metrics.peak_bytes or 0, peak.bytes + beside)
            self.close({**trained, **self.tested(model, last), "learning_rate": rate}, last)
            self.keep(model, parts, number + 1, last)

    def epoch(
        self, net: nn.Module, number: int, cost: accounting.Flops, peak: Peak, optimizer: Any, mover: Any
    ) -> dict[str, float]:
        """One pass over the training samples: the mean of the batches' losses, and the accuracy on them meanwhile."""
        losses, right = [], 0
        key = Key(self.run.seed).fold("order").fold(str(number))
        order = list(batches(len(self.data.train), self.run.train.batch, key))
        augment = key.fold("augment")
        mine = self.data.train.batches([self.team.shard(places) for places in order], augment)
        for places, batch in zip(order, mine, strict=True):
            inputs, labels = (tensor.to(self.device, non_blocking=True) for tensor in batch)
            with peak.step(inputs, labels):
                optimizer.zero_grad()
                logits = net(inputs)
                loss = cross_entropy(logits, labels) * self.team.weight(len(labels), len(places))
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                if mover:
                    mover.step(self.objective((inputs, labels), places, augment, cost))
            self.metrics.flops_total += cost.step + len(places) * cost.training
            self.metrics.samples += len(places)
            losses.append(loss.item())
            right += int((logits.argmax(dim=1) == labels).sum())
            if self.team.size == 1:  # of several processes one alone must not leave the others waiting
                self.check(losses[-1])
        mean = self.check(self.team.total(math.fsum(losses)) / len(losses))
        return {"train_loss": mean, "train_accuracy": self.team.total(right) / len(self.data.train)}

    def check(self, loss: float) -> float:
        """The loss; FloatingPointError if it is not finite."""
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss must be finite, got {loss} in epoch {len(self.done) + 1}")
        return loss

    def objective(self, batch: tuple[Tensor, Tensor], places: Tensor, key: Key, cost: accounting.Flops) -> Objective:
        """The loss on the whole batch, by which process 0 moves U for all of them; batch: a process's part."""

        def objective(net: nn.Module) -> Tensor:
            whole = batch if self.team.size == 1 else next(self.data.train.batches([places], key))
            self.metrics.flops_total += len(places) * cost.growth
            return cross_entropy(net(whole[0].to(self.device)), whole[1].to(self.device))

        return objective

    def tested(self, model: nn.Module, last: bool) -> dict[str, float | None]:
        """Accuracy on the test samples and on those held apart."""
        validation = self.validation if last else None
        return {
            "test_accuracy": accuracy(model, self.data.test, self.device) if last else None,
            "validation_accuracy": accuracy(model, validation, self.device) if validation else None,
        }

    def close(self, figures: dict[str, Any], last: bool) -> None:
        """Write down an epoch, and the time up to now."""
        now = time.perf_counter()
        self.done.append({"epoch": len(self.done) + 1, **figures, "seconds": now - self.mark})
        self.metrics.seconds += now - self.mark
        self.mark = now
        if last:
            self.metrics.epochs.append(self.done[-1] | {"epoch": len(self.metrics.epochs) + 1})

    def keep(self, model: nn.Module, parts: dict[str, Any], epochs: int, last: bool) -> None:
        """Hand the keeper all that `restore` needs; a round of a search that cannot be resumed keeps nothing."""
        if not last and self.search is None:
            return
        self.keeper.save(
            {
                "metrics": asdict(self.metrics),
                "done": self.done,
                "search": None if last or not self.search else self.search.state_dict(),
                "model": model_bytes(model) if last else model.state_dict(),
                "parts": {name: part.state_dict() for name, part in parts.items()},
                "epochs": epochs,
            }
        )

    def restore(self, model: nn.Module, parts: dict[str, Any], last: bool) -> int:
        """Bring a training that was interrupted where it was; how many epochs it has done."""
        if (state := self.resumed) is None:
            return 0
        self.resumed = None
        if not last:
            model.load_state_dict(state["model"])
        for name, part in parts.items():
            part.load_state_dict(state["parts"][name])
        return int(state["epochs"])


def batches(n: int, size: int, key: Key) -> Iterator[Tensor]:
    """All of range(n) in random order, `size` at a time; the last may be smaller."""
    order = torch.from_numpy(key.permutation(n))
    return (order[start : start + size] for start in range(0, n, size))


@torch.no_grad()
def accuracy(model: nn.Module, samples: Samples, device: torch.device, size: int = 500) -> float:
    """The fraction of the samples whose largest logit is at their label."""
    model.eval()
    right = 0
    for start in range(0, len(samples), size):
        inputs, labels = samples.batch(torch.arange(start, min(start + size, len(samples))))
        right += int((model(inputs.to(device)).argmax(dim=1) == labels.to(device)).sum())
    model.train()
    return right / len(samples)
