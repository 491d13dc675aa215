"""Intrinsic dimension: the least dim whose subspace reaches a share of ordinary training's accuracy.

Li et al. (2018), "Measuring the intrinsic dimension of objective landscapes", and Aghajanyan et al. (2020) for
fine-tuning. All trainings are ordinary runs in the study's store: what is interrupted goes on, and what another study
has trained is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import subspace
from subspace import Key
from subspace.study import data, models
from subspace.study.entries.entry import Choice
from subspace.study.execution.callbacks import Callback, Callbacks
from subspace.study.execution.launchers import Launcher
from subspace.study.execution.live import in_notebook
from subspace.study.execution.plan import OUT, Asked, Plan, read_intact
from subspace.study.execution.runner import ELSEWHERE, Runner
from subspace.study.methods import method
from subspace.study.results.dimension import Dimension
from subspace.study.results.store import Record
from subspace.study.results.threshold_search import is_hopeless, log_grid, outcome, search_thresholds
from subspace.study.spec.study import Run

if TYPE_CHECKING:
    import pandas as pd


def dimension(
    study: Asked,
    target: float = 0.9,
    out: Path | str = OUT,
    launcher: str | Launcher = "pool",
    *,
    options: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callback] | None = None,
    retry: bool = False,
) -> pd.DataFrame:
    """Find the intrinsic dimension of every data set, model and method of a study, and write its table and figure.

    A seed succeeds at a dim where its accuracy on the test samples is `target` times that of ordinary training from the
    same seed. Every seed's least such dim is searched by about 7 trainings; half of the seeds succeed at the dim that
    is found. Without a schedule of the learning rate, a training that will not come to the target is stopped.

    Args:
        study: as of `run`. Its dims, if any, are the bounds of the search, which otherwise goes from 1, or the least
            that a method takes, to the number of weights; its densities are not used.
        target: the share of ordinary training's accuracy, in (0, 1].
        out: the folder of results, as of `run`; dimension.csv, dimension-runs.csv and dimension-1.png (.svg) go to
            out/<name of the study>.
        launcher: as of `run`.
        options: the launcher's.
        callbacks: as of `run`.
        retry: try those runs again that have failed twice.

    Returns:
        A row for each data set, model and method: dim, its 95 % interval low to high (nan for one seed), and `note`,
        what kept a dim from being found, if anything.

    Raises:
        ValueError: the study cannot be as it says, the target is out of range, or a dim is above the number of weights
            or below what a method takes; nothing has run.
        StorageError: results cannot be written; what has finished is kept.
    """
    from subspace.study.reports.analyses.dimension import write_dimensions  # it loads pandas and matplotlib

    if not 0 < target <= 1:
        raise ValueError(f"target must be in (0, 1], the share of ordinary training's accuracy, got {target}")
    plan = Plan.of(study, out, launcher, options)
    questions = list(ask(plan))
    trainer = Trainer(plan, Callbacks(in_notebook() if callbacks is None else callbacks), retry)
    try:
        with plan.launcher:
            found = [measure(trainer, question, target) for question in questions]
    finally:
        trainer.told.close()
    for each in found:
        trainer.told.say(str(each))
    return write_dimensions(plan.store.folder / plan.study.name, found)


@dataclass(frozen=True)
class Question:
    """What a dim is asked of: the runs of ordinary training by seed, and any run of the method, with its dims."""

    ordinary: Mapping[int, Run]
    run: Run
    grid: Sequence[int]


def ask(plan: Plan) -> Iterator[Question]:
    """A question for each data set, model and method of a study; ValueError where there can be none."""
    study = plan.study
    seeds = range(study.seeds) if isinstance(study.seeds, int) else study.seeds
    methods = [chosen for chosen in study.choices() if method(chosen.name).has_density]
    if not methods:
        raise ValueError("methods must have one with a dim, such as random_subspace, got none")
    for entry in study.data:
        where = Choice.of(entry, "data")
        loaded = data.load(where)
        for which in (Choice.of(each, "model") for each in study.models):
            model = models.build(which, loaded, Key(0))
            weights = sum(t.weight.numel() for t in subspace.targets(model).values())
            least, most = (min(study.dims), max(study.dims)) if study.dims else (1, weights)
            if most > weights:
                raise ValueError(f"dims must be at most the number of weights of {which}, {weights:,}, got {most:,}")
            dense = Run(Choice("ordinary"), which, where, train=study.train)
            ordinary = {seed: replace(dense, seed=seed) for seed in seeds}
            for chosen in methods:
                fewest = method(chosen.name).least_dim(model)
                if study.dims and least < fewest:
                    raise ValueError(f"dims must be at least {fewest} for {chosen} of {which}, got {least}")
                grid = log_grid(max(least, fewest), most)
                yield Question(ordinary, replace(dense, method=chosen, dim=most), grid)


def measure(trainer: Trainer, question: Question, target: float) -> Dimension:
    """The answer to a question, or what keeps one from being found."""
    found = Dimension(question.run, question.grid, target)
    try:
        baseline = trainer.accuracies(list(question.ordinary.values()))
        if not all(baseline):
            raise LookupError("ordinary training must have an accuracy above 0 at every seed, got 0")
        found.ordinary = dict(zip(question.ordinary, baseline, strict=True))

        def performance(asked: Sequence[tuple[int, int]]) -> list[float]:
            runs = [replace(question.run, dim=dim, seed=seed) for dim, seed in asked]
            lines = [target * found.ordinary[run.seed] for run in runs]
            values = trainer.accuracies(runs, lines)
            return [value / found.ordinary[run.seed] for run, value in zip(runs, values, strict=True)]

        found.searches = search_thresholds(performance, list(question.ordinary), question.grid, target)
    except LookupError as failure:
        found.failure = str(failure)
    return found


@dataclass
class Trainer:
    """Trains runs in a plan's store, and tells how well they do."""

    plan: Plan
    told: Callbacks
    retry: bool = False

    def accuracies(self, runs: Sequence[Run], lines: Sequence[float] = ()) -> list[float]:
        """The accuracies of runs on the test samples; what will not come to its line is not trained to the end.

        Raises LookupError where a run has failed.
        """
        watch = Watch(self.told, dict(zip(runs, lines, strict=True)) if lines else {})
        missing = replace(self.plan, runs=runs).unfinished(self.told, self.retry)
        for run in missing:
            watch.seen[run] = tested(self.plan.store.progress(run))
        if missing := [run for run in missing if not watch.is_lost(run)]:
            watch.expect(missing)
            try:
                Runner(self.plan.store, self.plan.launcher, watch, ELSEWHERE).carry_out(missing)
            except Lost:
                with self.plan.launcher:
                    pass  # leaving it stops what is being trained
        return [self.accuracy(run, watch) for run in runs]

    def accuracy(self, run: Run, watch: Watch) -> float:
        """The accuracy of a run after its last epoch, or the best where it could be stopped."""
        records = read_intact([run], self.plan.store, self.told.say)
        if records and records[0]["status"] == "failed":
            raise LookupError(f"every run must end well, got {records[0]['error']} in {run}")
        values = tested(records[0]["metrics"]["epochs"]) if records else watch.seen[run]
        return outcome(values, run.train.epochs, watch.lines[run]) if watch.may_stop(run) else values[-1]


PATIENCE = 20.0  # seconds of training that are worth new worker processes


class Lost(Exception):  # noqa: N818
    """No run that is being trained will come to its line."""


@dataclass
class Watch(Callback):
    """Tells others what happens, and stops the runs once none of those being trained will come to its line."""

    told: Callback
    lines: Mapping[Run, float]
    seen: dict[Run, list[float]] = field(default_factory=dict)
    open: set[Run] = field(default_factory=set)
    left: dict[Run, float] = field(default_factory=dict)

    def may_stop(self, run: Run) -> bool:
        """Whether a run has a line, and no schedule, which may lift it at the end."""
        return run in self.lines and not run.train.schedule

    def is_lost(self, run: Run) -> bool:
        """Whether a run will not come to its line."""
        return self.may_stop(run) and is_hopeless(self.seen[run], run.train.epochs, self.lines[run])

    def require_hope(self) -> None:
        """Raise Lost where none of the open runs will come to its line, and stopping them saves time."""
        slow = max((self.left.get(run, 0.0) for run in self.open), default=0.0) > PATIENCE
        if slow and all(map(self.is_lost, self.open)):
            raise Lost

    def expect(self, runs: Sequence[Run]) -> None:
        self.open = set(runs)
        self.told.expect(runs)

    def begin(self, run: Run) -> None:
        self.seen[run] = []
        self.told.begin(run)

    def epoch(self, run: Run, figures: dict[str, Any]) -> None:
        self.seen[run] += tested([figures])
        self.left[run] = figures["seconds"] * (run.train.epochs - len(self.seen[run]))
        self.told.epoch(run, figures)
        self.require_hope()

    def end(self, run: Run, record: Record) -> None:
        self.open.discard(run)
        self.told.end(run, record)
        self.require_hope()

    def say(self, text: str) -> None:
        self.told.say(text)


def tested(epochs: Sequence[Mapping[str, Any]]) -> list[float]:
    """The accuracies on the test samples of the epochs that end with a test."""
    return [each["test_accuracy"] for each in epochs if each.get("test_accuracy") is not None]
