"""What a run measures, as its record has it; `results.schema` describes the columns that become of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Metrics:
    """Figures of one run. Sizes are those `subspace.summary` counts, FLOPs and bytes those of `training.costs`.

    The rounds of IMP train, so they are part of training here.
    """

    classes: int = 0  # of the data
    weights: int = 0  # numbers in the re-parametrized tensors, N
    dim: int = 0  # numbers trained in place of them
    alpha: int = 0  # how many of these scale an offset
    beside: dict[str, int] = field(default_factory=dict)  # other numbers that are trained, by kind
    learning_rate: float = 0.0  # at the start
    epochs: list[dict[str, Any]] = field(default_factory=list)  # after U is chosen: see `training.loop`
    tensors: list[dict[str, Any]] = field(default_factory=list)  # of the trained network: see `training.costs`
    seconds: float = 0.0  # wall time of building and training, that before a crash included
    samples: int = 0  # samples trained on, with repetition
    flops_init: float = 0.0  # to choose U, as computed
    flops_training: float = 0.0  # per sample, the mean over all steps
    flops_forward: float = 0.0  # per sample, of the trained network
    flops_total: float = 0.0  # to choose U and to train
    flops_dense_training: float = 0.0  # per sample, of the same network with every W built
    flops_dense_forward: float = 0.0
    trained_bytes: int = 0
    stored_init: int = 0  # bytes at the start, with the dense weights where U is chosen by them
    stored_training: int = 0  # bytes, the most at the end of an epoch
    stored_bytes: int = 0  # of the trained network
    file_bytes: int = 0  # of its checkpoint, on disk
    file_bytes_dense: int = 0  # of the dense network's
    peak_bytes: int | None = None  # the most that a training step holds; not measured in several processes on CPUs
    activation_bytes: int = 0  # that a forward pass of a batch keeps for the backward pass
    reduced_bytes: int = 0  # that a step sends, per process; 0 for one process
    reduced_bytes_dense: int = 0  # that a dense network's would
    spectra: dict[str, list[list[float]]] = field(default_factory=dict)  # "initial", "trained": see `training.jacobian`
