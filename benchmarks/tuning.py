"""Tuners of this package beside peft's, at equal bytes of file: accuracy, time of a step, memory saved for backward.

Every tuner gets the same search: each of some rates with one seed, the best by samples held out, which then counts with
other seeds; and one rate for all without a search. The head is new, trains at a rate of its own, and is in no figure.
Every run is a line of `runs.csv`, and what is there is not run again: a part of the grid can be run at a time.

python -m benchmarks.tuning --tasks digits language --budgets 10000 --seeds 3 --out benchmarks/results/tuning
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy import stats
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.plots import against_bytes
from benchmarks.report import Row, options, write
from benchmarks.tasks import TASKS, Split, Task
from benchmarks.tuners import TUNERS, file_bytes, largest_size, made
from subspace import Key, rounded
from subspace.study.reports.figures.images import style
from subspace.study.reports.figures.looks import assign_looks
from subspace.study.reports.grid import Grid
from subspace.study.training.costs import activation_bytes

RATES = (2e-3, 1e-2, 5e-2)  # that are searched, of every tuner
DEFAULT = 1e-2  # without a search, of every tuner
HEAD = 5e-3  # of the head
SEARCH = 1000  # the seed of the search
CASE = ["task", "tuner", "budget", "rate", "seed"]
EQUAL = ["task", "budget", "seed"]  # of runs that are compared


def tuned(task: Task, name: str, size: int, rate: float, seed: int, steps: int, batch: int) -> Row:
    """The figures of one run: Adam at this rate, on batches of a random order."""
    model = made(task, name, size, seed).train()
    head = [each for part, each in model.named_parameters() if each.requires_grad and "head" in part.split(".")]
    known = {id(each) for each in head}
    rest = [each for each in model.parameters() if each.requires_grad and id(each) not in known]
    groups = [{"params": part, "lr": lr} for part, lr in ((rest, rate), (head, HEAD)) if part]
    optimizer = torch.optim.Adam(groups)
    first = task.train.at(torch.arange(batch))
    saved = activation_bytes(model, lambda net: cross_entropy(net(*first.inputs), first.labels))
    seconds, losses = [], []
    for places in orders(len(task.train.labels), batch, steps, Key(seed)):
        part = task.train.at(places)
        start = perf_counter()
        optimizer.zero_grad()
        loss = cross_entropy(model(*part.inputs), part.labels)
        loss.backward()
        optimizer.step()
        seconds.append(perf_counter() - start)
        losses.append(loss.item())
    bits = TUNERS[name].bits
    with rounded(model, bits):
        found = {"held_out": accuracy(model, task.held_out), "test": accuracy(model, task.test)}
    return {
        **found,
        **{"first_loss": losses[0], "last_loss": sum(losses[-5:]) / len(losses[-5:])},
        **{"step_seconds": median(seconds), "saved_bytes": saved, "file_bytes": file_bytes(model, task, bits)},
        "trained": sum(each.numel() for each in rest),
    }


def orders(n: int, batch: int, steps: int, key: Key) -> Iterator[torch.Tensor]:
    """Places of batches, an epoch in one order after the other."""
    epoch, left = 0, torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(left) < batch:
            left = torch.from_numpy(key.fold(f"epoch {epoch}").permutation(n))
            epoch += 1
        yield left[:batch]
        left = left[batch:]


@torch.no_grad()
def accuracy(model: nn.Module, samples: Split) -> float:
    """The fraction of samples whose largest logit is at their label."""
    model.eval()
    found = model(*samples.inputs).argmax(1) == samples.labels
    model.train()
    return float(found.double().mean())


class Runs:
    """The runs of a folder, one line of runs.csv each; new ones are added at its end."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "runs.csv"
        self.table = pd.read_csv(self.path) if self.path.exists() else pd.DataFrame(columns=CASE)

    def get(self, case: Row) -> Row | None:
        """What is known of a case."""
        same = self.table
        for name in CASE:
            same = same[same[name] == case[name]]
        return None if not len(same) else dict(same.iloc[0])

    def add(self, row: Row) -> Row:
        """Keep a run."""
        line = pd.DataFrame([row])
        self.table = line if not len(self.table) else pd.concat([self.table, line], ignore_index=True)
        self.table.to_csv(self.path, index=False, float_format="%.6g")
        return row


def carry_out(task: Task, name: str, budget: int, size: int, runs: Runs, args: object) -> None:
    """The search, the runs at its best rate and those at the default one, where they are not there yet."""

    def run(rate: float, seed: int) -> Row:
        case: Row = {"task": task.name, "tuner": name, "budget": budget, "rate": rate, "seed": seed}
        if (known := runs.get(case)) is not None:
            return known
        figures = tuned(task, name, size, rate, seed, args.steps, args.batch)  # type: ignore[attr-defined]
        print(*case.values(), f"{figures['test']:.3f}", flush=True)
        return runs.add({**case, "size": size, **figures})

    searched = {rate: run(rate, SEARCH)["held_out"] for rate in ([DEFAULT] if name == "head only" else RATES)}
    best = max(searched, key=lambda rate: (searched[rate], -abs(rate - DEFAULT)))
    for rate in dict.fromkeys([best, DEFAULT]):
        for seed in range(args.seeds):  # type: ignore[attr-defined]
            run(rate, seed)


def summary(runs: pd.DataFrame) -> list[Row]:
    """A row per task, budget and tuner: accuracies over seeds with Student's 95 % interval, and what it costs."""
    table: list[Row] = []
    for (task, budget, tuner), part in runs.groupby(["task", "budget", "tuner"], sort=False):
        searched, rest = part[part["seed"] == SEARCH], part[part["seed"] != SEARCH]
        nearest = (searched["rate"] - DEFAULT).abs()
        best = searched.assign(away=nearest).sort_values(["held_out", "away"], ascending=[False, True])["rate"].iloc[0]
        chosen, default = rest[rest["rate"] == best], rest[rest["rate"] == DEFAULT]
        if not len(chosen) or not len(default):
            continue
        table.append(
            {
                **{"task": task, "budget": budget, "tuner": tuner, "size": int(part["size"].iloc[0])},
                **{"rate": best, "seeds": len(chosen), "test": chosen["test"].mean(), **interval(chosen["test"])},
                **{"default_test": default["test"].mean(), "default_last_loss": default["last_loss"].mean()},
                **{"step_ms": 1e3 * chosen["step_seconds"].median(), "saved_MB": chosen["saved_bytes"].mean() / 1e6},
                **{"file_bytes": int(chosen["file_bytes"].mean()), "trained": int(chosen["trained"].mean())},
            }
        )
    return table


def interval(values: pd.Series) -> dict[str, float]:
    """Student's 95 % interval of a mean; NaN for one value."""
    n = len(values)
    half = stats.t.ppf(0.975, n - 1) * values.std() / n**0.5 if n > 1 else float("nan")
    return {"low": values.mean() - half, "high": values.mean() + half}


def accuracies(runs: pd.DataFrame, task: str) -> str:
    """A row per tuner of a task, a column per budget: test accuracy, and that without a search where it differs."""

    def cell(row: Any) -> str:
        searched = f"{100 * row.test:.1f} [{100 * row.low:.1f}, {100 * row.high:.1f}]"
        return searched if row.rate == DEFAULT else f"{searched}; {100 * row.default_test:.1f}"

    return by_budget(pd.DataFrame(summary(runs[runs["task"] == task])), cell)


def costs(runs: pd.DataFrame, tasks: str) -> str:
    """A row per tuner, a column per budget: numbers trained, time of a step, memory saved.

    Of several tasks, with blanks between, in which the tuned layers are the same: the least of their medians of time,
    as a machine is never faster than it is, and what is largest of the rest.
    """
    found = pd.DataFrame(summary(runs[runs["task"].isin(tasks.split())]))
    sides = {"step_ms": "min", "trained": "max", "saved_MB": "max", "test": "mean"}
    one = found.groupby(["tuner", "budget"], sort=False).agg(sides).reset_index()
    return by_budget(one, lambda row: f"{row.trained:,}; {row.step_ms:.0f} ms; {row.saved_MB:.1f} MB")


def by_budget(found: pd.DataFrame, cell: Callable[[Any], str]) -> str:
    """A row per tuner, the one of the best accuracy first, and a column per budget, of cell(its row)."""
    budgets = sorted(found["budget"].unique())
    cells = {(row.tuner, row.budget): cell(row) for row in found.itertuples()}
    best = found.groupby("tuner")["test"].max().sort_values(ascending=False, kind="stable")
    rows = [[str(tuner), *(cells.get((tuner, budget), "") for budget in budgets)] for tuner in best.index]
    return Grid.of_texts("", ["tuner", *(f"{budget:,} B" for budget in budgets)], rows).to_markdown()


def gains(runs: pd.DataFrame) -> pd.DataFrame:
    """Points above the head alone, at equal seeds, the mean over tasks: a row per tuner, budget and seed.

    Of tuners that can take all the tasks at that budget, at the rates that were searched.
    """
    chosen = pd.DataFrame(summary(runs))[["task", "budget", "tuner", "rate", "file_bytes"]]
    kept = runs[runs["seed"] != SEARCH].merge(chosen, on=["task", "budget", "tuner", "rate"], suffixes=("", "_mean"))
    alone = kept.loc[kept["tuner"] == "head only", [*EQUAL, "test"]]
    found = kept[kept["tuner"] != "head only"].merge(alone, on=EQUAL, suffixes=("", "_alone"))
    found["gain"] = 100 * (found["test"] - found["test_alone"])
    by_seed = found.groupby(["tuner", "budget", "seed"], sort=False)
    table = by_seed.agg(gain=("gain", "mean"), file_bytes=("file_bytes_mean", "mean"), tasks=("task", "nunique"))
    return table[table["tasks"] == runs["task"].nunique()].drop(columns="tasks").reset_index()


def figure(runs: pd.DataFrame) -> Figure:
    """Points above the head alone against the bytes of the file: a line per tuner, with 95 % intervals over seeds."""
    found, looks = gains(runs), assign_looks(name for name in TUNERS if name != "head only")
    with style():
        drawn = Figure(figsize=(8.5, 5), layout="constrained")
        axes = drawn.subplots()
        for tuner, own in found.groupby("tuner", sort=False):
            exact = str(tuner).removesuffix(", 8 bits")
            look = looks[exact] | {"markersize": 6} | ({} if exact == tuner else {"linestyle": ":"})
            groups = own.groupby("budget")
            sizes, ends = groups["file_bytes"].mean(), pd.DataFrame([interval(part["gain"]) for _, part in groups])
            axes.vlines(sizes, ends["low"], ends["high"], color=look["color"], alpha=0.4)
            axes.plot(sizes, groups["gain"].mean(), label=str(tuner), **look)
        axes.axhline(0, color="0.6", linewidth=1)
        against_bytes(drawn, axes, "Tuners at equal bytes", ", without the head", "points above the head alone")
    return drawn


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--tuners", nargs="+", choices=list(TUNERS), default=list(TUNERS))
    parser.add_argument("--budgets", nargs="+", type=int, default=[1_000, 10_000, 100_000, 1_000_000], help="bytes")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--layers", type=int, default=1, help="of MiniLM that are tuned, the last ones")
    args = parser.parse_args()
    if args.out is None:
        parser.error("--out must be given: runs are kept there")
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    runs = Runs(args.out)
    sizes = args.out / "sizes.json"
    known: dict[str, int] = json.loads(sizes.read_text()) if sizes.exists() else {}
    for task_name in args.tasks:
        task = TASKS[task_name](args.layers)
        for budget in args.budgets:
            for name in args.tuners:
                case = f"{task_name}, {budget}, {name}"
                if case not in known:
                    known[case] = largest_size(task, name, budget)
                    sizes.write_text(json.dumps(known, indent=2) + "\n")
                if known[case]:
                    carry_out(task, name, budget, known[case], runs, args)
    write(args.out, summary(runs.table))


if __name__ == "__main__":
    main()
