"""Runs in small: a few batches for two epochs, to know what the whole will take. It is the code that trains.

For every kind of run (method, size, model, data, training) the fixed part, as to build the network and choose U, is
timed apart from an epoch, and an epoch from the test at its end; the rounds of a search are counted and left out. Kinds
for which there is no time left take ordinary training's by the method's own `cost`.
"""

from __future__ import annotations

import json
import math
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from subspace import Key
from subspace.study import data, models
from subspace.study.data import Samples
from subspace.study.distributed.team import Team
from subspace.study.entries.entry import Choice, canonical
from subspace.study.entries.seeding import seeded
from subspace.study.execution.execute import prepare
from subspace.study.methods import method
from subspace.study.spec.study import Run
from subspace.study.training.costs import file_bytes_dense
from subspace.study.training.loop import Loop, accuracy
from subspace.study.training.run import choose, finished
from subspace.study.training.state import State, pack

LEAST = 2  # batches
EPOCH = 0.2  # seconds that a rehearsed epoch is to take, where the data is enough
PATIENCE = 20.0  # seconds after which no more kinds are rehearsed than one for every model, data and training
TESTED = 500  # samples


@dataclass(frozen=True)
class Cost:
    """Seconds: fixed ones of a run, of a step, and of testing a sample; bytes of its state and of its record.

    rounds: how many networks are trained to choose U. epoch: bytes of one in the record. dense: of the dense network.
    """

    fixed: float
    step: float
    test: float
    state: int
    record: int
    epoch: int
    dense: int
    rounds: int


@dataclass
class Rehearsal:
    """What was found out: costs by `kind`, seconds to load the data by its choice and to start a process, its memory.

    warming: seconds that the first run of a process takes longer than a second one would. samples: how many there are
    to train and validate on, and to test on, by the data's choice. memory: the most bytes that a process holds, None
    where the system does not tell.
    """

    start: float = 0.0
    warming: float = 0.0
    memory: int | None = None
    loading: dict[str, float] = field(default_factory=dict)
    samples: dict[str, tuple[int, int]] = field(default_factory=dict)
    costs: dict[str, Cost] = field(default_factory=dict)

    def seconds(self, run: Run) -> float:
        """Of training a run."""
        cost, ordinary = self.cost(run), self.costs[kind(usual(run))]
        train, test = self.samples[str(run.data)]
        apart = round(run.train.validation * train)
        steps = math.ceil((train - apart) / run.train.batch)
        slower = 1.0 if kind(run) in self.costs else method(run.method.name).cost(run.density or 0.01)
        epoch = slower * steps * cost.step + (test + apart) * cost.test
        return cost.fixed + run.train.epochs * (epoch + cost.rounds * steps * ordinary.step)

    def state(self, run: Run) -> int:
        """The bytes it goes on from when it is interrupted; at most, where its kind was not rehearsed."""
        cost = self.cost(run)
        return max(cost.state, 6 * cost.dense if cost.rounds else 0)  # w twice, two moments, places of 8 bytes

    def record(self, run: Run) -> int:
        """The bytes of its result."""
        cost = self.cost(run)
        return cost.record + run.train.epochs * cost.epoch

    def cost(self, run: Run) -> Cost:
        """That of its kind, or else ordinary training's."""
        rounds = int(run.method.options.get("rounds", 0))
        return self.costs.get(kind(run)) or replace(self.costs[kind(usual(run))], rounds=rounds)


class Notes:
    """A keeper that keeps nothing but the size and the figures."""

    size = 0
    done: Sequence[dict[str, float]] = ()

    def load(self) -> State | None:
        return None

    def save(self, state: State) -> None:
        self.size, self.done = len(pack(state)), list(state["done"])


def rehearse(runs: Sequence[Run], began: float) -> Rehearsal:
    """Rehearse a run of every kind in this process, which was started at `began`, in seconds of time.time()."""
    warnings.simplefilter("ignore")  # of runs that are not the real ones
    found, end = Rehearsal(start=time.time() - began), time.monotonic() + PATIENCE
    for run in runs:
        if str(run.data) not in found.loading:
            start = time.perf_counter()
            whole = data.load(run.data)
            found.loading[str(run.data)] = time.perf_counter() - start
            found.samples[str(run.data)] = len(whole.train), len(whole.test)
    for run in [*map(usual, runs), *runs]:
        if kind(run) not in found.costs and (run == usual(run) or time.monotonic() < end):
            prepare(run)
            reference = found.costs.get(kind(usual(run))) or rehearsed(usual(run), LEAST)
            batches = max(LEAST, int(EPOCH / reference.step))
            again = run != usual(run) or batches > LEAST
            found.costs[kind(run)] = rehearsed(run, batches) if again else reference
            if len(found.costs) == 1:
                found.warming = max(0.0, reference.fixed - found.costs[kind(run)].fixed)
    found.memory = most_memory()
    return found


def rehearsed(run: Run, batches: int) -> Cost:
    """The cost of a run, found with so many batches and two epochs."""
    whole, key = data.load(run.data), Key(run.seed)
    few = whole._replace(train=first(whole.train, batches * run.train.batch), test=first(whole.test, TESTED))
    notes, rounds = Notes(), list[nn.Module]()
    start = time.perf_counter()
    loop = Loop(replace(run, train=replace(run.train, epochs=2)), few, None, Team(), notes)
    loop.fit = rounds.append  # type: ignore[method-assign, assignment]
    with seeded(key.fold("generators")):
        dense = models.build(run.model, whole, key.fold("init")).to(loop.device)
        of_dense = file_bytes_dense(dense)
        model = choose(loop, dense)
    loop.train(model, loop.setting().density)
    tested = time.perf_counter()
    accuracy(model, few.test, loop.device)
    tested = time.perf_counter() - tested
    metrics = asdict(finished(loop, model))
    in_all = time.perf_counter() - start - tested
    epoch = float(notes.done[-1]["seconds"])
    text = json.dumps({"configuration": run.configuration(), "metrics": metrics}, indent=1)
    one = len(json.dumps(metrics["epochs"][-1], indent=1)) * 5 // 4  # indented further
    return Cost(
        fixed=in_all - 2 * epoch,
        step=max(epoch - tested, 0.1 * epoch) / math.ceil(len(few.train) / run.train.batch),
        test=tested / len(few.test),
        state=notes.size,
        record=len(text) - 2 * one + 1500,  # the environment and the rest
        epoch=one,
        dense=of_dense,
        rounds=len(rounds),
    )


def first(samples: Samples, count: int) -> Samples:
    """So many of them, or all."""
    return samples.subset(torch.arange(min(count, len(samples))))


def usual(run: Run) -> Run:
    """Ordinary training of the same model on the same data."""
    return Run(Choice("ordinary"), run.model, run.data, train=run.train)


def kind(run: Run, apart: Iterable[str] = ("seed", "version")) -> str:
    """What runs have in common that differ in these alone."""
    return canonical({name: value for name, value in run.configuration().items() if name not in {*apart}})


def most_memory() -> int | None:
    """The most bytes that this process has held so far."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    peaks = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    if peaks:
        return 1024 * peaks[0]
    try:
        import resource
    except ImportError:  # on Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
