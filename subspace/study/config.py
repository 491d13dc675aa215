"""What is run: everything that influences a result is in one frozen `Run`, and a `Study` is a grid of them."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any

import subspace
from subspace.study.methods import BASIC, METHODS, method


@dataclass(frozen=True)
class Training:
    """How a network is trained, with Adam: `learning_rate` is that of the dense network (see `study.train`)."""

    epochs: int = 4
    batch: int = 128
    learning_rate: float = 3e-3

    def __post_init__(self) -> None:
        object.__setattr__(self, "learning_rate", float(self.learning_rate))
        for name, value in (("epochs", self.epochs), ("batch", self.batch)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive and finite, got {self.learning_rate}")


@dataclass(frozen=True)
class Run:
    """One training run. ValueError for an unknown method, or a density that is not in (0, 1] (None: ordinary's).

    options: the method's own numbers, by name; None stands for those in `METHODS`.
    """

    method: str
    density: float | None
    seed: int
    model: str = "lenet5"
    data: str = "mnist5k"
    training: Training = field(default_factory=Training)
    options: tuple[tuple[str, float], ...] | None = None
    version: str = subspace.__version__

    def __post_init__(self) -> None:
        expected = method(self.method).options
        options = dict(expected if self.options is None else self.options)
        if options.keys() != expected.keys():
            names = [", ".join(sorted(given)) or "none" for given in (expected, options)]
            raise ValueError(f"options of {self.method} must be {names[0]}, got {names[1]}")
        object.__setattr__(self, "options", tuple(sorted(options.items())))
        if not method(self.method).has_density:
            if self.density is not None:
                raise ValueError(f"density must be None for {self.method}, got {self.density}")
        elif self.density is None or not 0 < self.density <= 1:
            raise ValueError(f"density must be in (0, 1], got {self.density}")
        else:
            object.__setattr__(self, "density", float(self.density))
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")

    def __str__(self) -> str:
        density = "" if self.density is None else f", density {self.density:g}"
        return f"{METHODS[self.method].label}{density}, seed {self.seed}"

    @property
    def hash(self) -> str:
        """16 hexadecimal digits: the name of this run's directory."""
        return hashlib.sha256(canonical(self.configuration()).encode()).hexdigest()[:16]

    @property
    def epochs(self) -> int:
        """How many there are at most, those of the rounds that choose U included."""
        return self.training.epochs * (1 + int(dict(self.options or ()).get("rounds", 0)))

    @property
    def cost(self) -> float:
        """The expected time, in epochs of ordinary training."""
        return self.epochs * METHODS[self.method].cost(self.density or 1.0)

    def configuration(self) -> dict[str, Any]:
        """All of it as JSON has it, options only where there are any; `Run.parse` is the inverse."""
        fields = asdict(self)
        options = dict(fields.pop("options"))
        return {**fields, "options": options} if options else fields

    @classmethod
    def parse(cls, configuration: dict[str, Any]) -> Run:
        """The run whose `configuration()` is this."""
        training, options = Training(**configuration["training"]), configuration.get("options", {})
        return cls(**{**configuration, "training": training, "options": tuple(options.items())})


@dataclass(frozen=True)
class Study:
    """Methods x densities x seeds; ordinary training has no density and is there once per seed."""

    methods: tuple[str, ...] = BASIC
    densities: tuple[float, ...] = (0.1, 0.01, 0.001)
    seeds: int = 3
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        if not self.methods:
            raise ValueError(f"methods must be some of {', '.join(METHODS)}, got none")
        if not self.densities:
            raise ValueError("densities must be some numbers in (0, 1], got none")
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {self.seeds}")

    def runs(self) -> list[Run]:
        """Every run once, by method, density and seed. ValueError for what a `Run` does not take."""
        grid = (
            Run(name, density, seed, training=self.training)
            for name in self.methods
            for density in (self.densities if method(name).has_density else [None])
            for seed in range(self.seeds)
        )
        return list(dict.fromkeys(grid))


def canonical(value: object) -> str:
    """The one JSON text of a value: sorted keys, no blanks; ValueError for numbers that JSON does not have."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
