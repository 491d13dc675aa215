"""Records of runs that nobody trained: their figures follow a formula, so that tables and figures can be checked."""

import math

from subspace.study.methods import METHODS
from subspace.study.spec.study import Run

LENET = {"conv1": (6, 1, 5, 5), "conv2": (16, 6, 5, 5), "conv3": (120, 16, 5, 5), "fc1": (84, 120), "fc2": (10, 84)}
ENVIRONMENT = {"subspace": "0.1.0", "torch": "2.13.0", "numpy": "2.4.6", "python": "3.11.7", "platform": "Linux"}
ENVIRONMENT |= {"cpu": "Some Processor", "kernels": "avx2", "threads": 1}


def accuracy(run: Run) -> float:
    """Falls with the logarithm of the density, at a rate of the method's own; a seed is worth half a point."""
    names = list(METHODS)
    rate = 0.05 + 0.02 * (names.index(run.method.name) if run.method.name in names else 5) % 0.3
    density = run.density or (run.dim / 61_210 if run.dim else 1.0)
    return max(0.1, 0.96 - rate * math.log10(1 / density) - 0.005 * run.seed)


def failure(run: Run, error: str = "FloatingPointError: the loss must be finite, got nan in epoch 2") -> dict:
    """The record of a run that was tried twice."""
    told = f'Traceback (most recent call last):\n  File "loop.py", line 1, in train\n{error}'
    return base(run) | {"status": "failed", "attempts": 2, "error": error, "traceback": told, "metrics": None}


def finished(run: Run, last: float | None = None, tensors=LENET, **figures) -> dict:
    """The record of a finished run; last: its test accuracy. figures replace those of the formula."""
    last = accuracy(run) if last is None else last
    shapes = [shape if isinstance(shape, tuple) else tuple(shape) for shape in tensors.values()]
    numels = [math.prod(shape) for shape in shapes]
    weights = sum(numels)
    density = run.density or (run.dim / weights if run.dim else 1.0)
    if "epl" in run.method.name or "dctps" in run.method.name:
        dims = [min(numel, round(density * weights / len(numels))) for numel in numels]
    else:
        dims = [round(density * numel) for numel in numels]
    alpha = len(dims) if "dct" in run.method.name else 0
    rounds = run.method.options.get("rounds", 0)
    count = run.train.epochs
    metrics = {
        "weights": weights,
        "dim": sum(dims) + alpha,
        "alpha": alpha,
        "beside": {"bias": 10, "norm": 4},
        "learning_rate": run.train.learning_rate / math.sqrt(density),
        "epochs": [
            {
                "epoch": number,
                "train_loss": 2.3 * (1 - last) ** (number / count) + 0.01 * run.seed,
                "train_accuracy": last * number / count,
                "test_accuracy": last if number == count else 0.1 + (last - 0.1) * (1 - math.exp(-2 * number / count)),
                "validation_accuracy": last - 0.01 if run.train.validation else None,
                "learning_rate": run.train.learning_rate,
                "seconds": 0.5,
            }
            for number in range(1, count + 1)
        ],
        "tensors": [
            {
                "name": f"{name}.weight",
                "shape": list(shape),
                "offset": "DCT" if alpha else "Zero",
                "embedding": "Sparse",
                "numel": numel,
                "dim": dim,
                "density": dim / numel,
            }
            for name, shape, numel, dim in zip(tensors, shapes, numels, dims, strict=True)
        ],
        "seconds": 2.5 + 10 * rounds,
        "samples": 4000 * count,
        "flops_init": 3e6 if METHODS[run.method.name].from_dense else 0.0,
        "flops_training": 2e6 * density + 1e4,
        "flops_forward": 8e5 * density + 4e3,
        "flops_total": 4000 * count * (1 + rounds) * (2e6 * density + 1e4),
        "flops_dense_training": 2e6,
        "flops_dense_forward": 8e5,
        "trained_bytes": 4 * sum(dims),
        "stored_init": 4 * weights,
        "stored_training": 8 * sum(dims),
        "stored_bytes": 6 * sum(dims),
        "file_bytes": (8 if METHODS[run.method.name].from_dense else 4) * sum(dims) + 500,
        "file_bytes_dense": 4 * weights + 400,
        "peak_bytes": 1_000_000 + 16 * sum(dims),
        "reduced_bytes": 0,
        "reduced_bytes_dense": 0,
    }
    return base(run) | {"metrics": metrics | figures}


def base(run: Run) -> dict:
    """What both have."""
    return {
        "schema": 2,
        "configuration": run.configuration(),
        "status": "finished",
        "attempts": 1,
        "error": None,
        "traceback": None,
        "warnings": [],
        "environment": dict(ENVIRONMENT),
        "finished_at": "2026-11-23T12:00:00Z",
    }
