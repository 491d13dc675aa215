"""Two runs as a study tells a callback of them, both under way at once."""

from __future__ import annotations

from subspace.study.entries.entry import Choice
from subspace.study.spec.study import Run, Training

RUNS = [Run(Choice("dctps"), density=0.01, seed=seed, train=Training(epochs=3)) for seed in (0, 1)]
METRICS = {
    "weights": 61_210,
    "dim": 617,
    "beside": {"bias": 10},
    "learning_rate": 0.03,
    "flops_total": 1.5e9,
    "file_bytes": 4_000,
    "tensors": [{"name": "conv1.weight"}],
}


def figures(run, epoch, validation=None):
    return {
        "epoch": epoch,
        "train_loss": 1 / epoch + run.seed,
        "test_accuracy": 0.1 * epoch,
        "validation_accuracy": validation,
        "learning_rate": 0.03,
        "seconds": 1.0,
    }


def record(run, error=None):
    if error:
        return {"status": "failed", "error": error, "metrics": None}
    return {"status": "finished", "error": None, "metrics": METRICS | {"epochs": [figures(run, 3)]}}


def study(callback, first=1, last=3, error=None, end=True):
    """Both runs at once, from an epoch to an epoch."""
    callback.expect(RUNS)
    for run in RUNS:
        callback.begin(run)
    for epoch in range(first, last + 1):
        for run in RUNS:
            callback.epoch(run, figures(run, epoch))
    for run in RUNS if end else ():
        callback.end(run, record(run, error))
    callback.close()
