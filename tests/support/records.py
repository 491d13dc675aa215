"""Records of runs that nobody trained: their figures follow a formula, so that tables and figures can be checked."""

import math
from dataclasses import asdict, replace

from subspace.study.execution.execute import make_record
from subspace.study.methods import METHODS
from subspace.study.spec.study import Run
from subspace.study.training.metrics import Metrics

LENET = {"conv1": (6, 1, 5, 5), "conv2": (16, 6, 5, 5), "conv3": (120, 16, 5, 5), "fc1": (84, 120), "fc2": (10, 84)}
ENVIRONMENT = {"subspace": "0.1.0", "torch": "2.13.0", "numpy": "2.4.6", "python": "3.11.7", "platform": "Linux"}
ENVIRONMENT |= {"cpu": "Some Processor", "kernels": "avx2", "threads": 1}
LOST = "FloatingPointError: the loss must be finite, got nan in epoch 2"
EPOCH = {"epoch": 1, "validation_accuracy": None, "learning_rate": 0.003, "seconds": 0.5}


def accuracy(run: Run) -> float:
    """Falls with the logarithm of the density, at a rate of the method's own; a seed is worth half a point."""
    names = list(METHODS)
    rate = 0.05 + 0.02 * (names.index(run.method.name) if run.method.name in names else 5) % 0.3
    density = run.density or (run.dim / 61_210 if run.dim else 1.0)
    return max(0.1, 0.96 - rate * math.log10(1 / density) - 0.005 * run.seed)


def failure(run: Run, error: str = LOST) -> dict:
    """The record of a run that was tried twice."""
    trace = f'Traceback (most recent call last):\n  File "loop.py", line 1, in train\n{error}'
    return recorded(run, make_record(None, error, trace, number=2))


def finished(run: Run, last: float | None = None, **figures) -> dict:
    """The record of a finished run; last: its test accuracy. figures replace those of the formula."""
    metrics = replace(measured(run, accuracy(run) if last is None else last), **figures)
    return recorded(run, make_record(asdict(metrics), None))


def recorded(run: Run, record: dict) -> dict:
    """A record as a store has it, of some machine and time."""
    known = {"environment": dict(ENVIRONMENT), "finished_at": "2026-11-23T12:00:00Z"}
    return {"schema": 2, "configuration": run.configuration(), **record, **known}


def measured(run: Run, last: float) -> Metrics:
    """Metrics of LeNet-5 whose costs are in proportion to the density."""
    numels = {name: math.prod(shape) for name, shape in LENET.items()}
    weights, count = sum(numels.values()), run.train.epochs
    density = run.density or (run.dim / weights if run.dim else 1.0)
    epl = min(numels.values()) if "epl" in run.method.name or "dctps" in run.method.name else 0
    dims = {n: min(numel, round(density * (weights / 5 if epl else numel))) for n, numel in numels.items()}
    alpha, dim = 5 if "dct" in run.method.name else 0, sum(dims.values())
    from_dense, rounds = METHODS[run.method.name].from_dense, run.method.options.get("rounds", 0)
    step = 2e6 * density + 1e4
    return Metrics(
        classes=10,
        weights=weights,
        dim=dim + alpha,
        alpha=alpha,
        beside={"bias": 10, "norm": 4},
        learning_rate=run.train.learning_rate / math.sqrt(density),
        epochs=[EPOCH | at_epoch(run, last, number / count) | {"epoch": number} for number in range(1, count + 1)],
        tensors=[
            {"name": f"{name}.weight", "shape": list(LENET[name]), "offset": "DCT" if alpha else "Zero"}
            | {"embedding": "Sparse", "numel": numel, "dim": dims[name], "density": dims[name] / numel}
            for name, numel in numels.items()
        ],
        seconds=2.5 + 10 * rounds,
        samples=4000 * count,
        flops_init=3e6 * from_dense,
        flops_training=step,
        flops_forward=8e5 * density + 4e3,
        flops_total=4000 * count * (1 + rounds) * step,
        flops_dense_training=2e6,
        flops_dense_forward=8e5,
        trained_bytes=4 * dim,
        stored_init=4 * weights,
        stored_training=8 * dim,
        stored_bytes=6 * dim,
        file_bytes=(8 if from_dense else 4) * dim + 500,
        file_bytes_dense=4 * weights + 400,
        peak_bytes=1_000_000 + 16 * dim,
        activation_bytes=400_000,
    )


def at_epoch(run: Run, last: float, part: float) -> dict:
    """The figures of an epoch, this part of all."""
    return {
        "train_loss": 2.3 * (1 - last) ** part + 0.01 * run.seed,
        "train_accuracy": last * part,
        "test_accuracy": last if part == 1 else 0.1 + (last - 0.1) * (1 - math.exp(-2 * part)),
        "validation_accuracy": last - 0.01 if run.train.validation else None,
    }
