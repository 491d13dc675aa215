"""What is run: everything that influences a result is in one frozen `Run`, and a `Study` is a grid of them.

All of it is plain dataclasses, so a `Study` is what a TOML or JSON file says, one to one (`spec.files`). A method, a
model, a data set, an optimizer and a schedule are each an entry: a name, or a table of a name and its options, as
"rigl" or {name = "rigl", delta_t = 100}.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

import subspace
from subspace.study.entries.entry import Choice, Entry, canonical
from subspace.study.methods import BASIC, METHODS, method

MODEL, DATA = Choice("lenet5"), Choice("mnist5k")
DENSITIES = (0.1, 0.01, 0.001)
WHERE = ("data_dir", "download")  # options of data that say where they are found


@dataclass(frozen=True)
class Training:
    """How a network is trained. ValueError, naming the field, for a value that is out of range.

    optimizer: a class of `torch.optim`, with options: {name = "SGD", momentum = 0.9}.
    learning_rate: that of the dense network. scaling: "root", for learning_rate / density^(1/2) at every density (see
    `training.loop`), or "none".
    schedule: a class of `torch.optim.lr_scheduler`, stepped after every epoch; "" for none.
    validation: the share of the training samples that is held apart and never trained on.
    structured: whether layers compute with d and U themselves, as `subspace.structured` has it.
    device: torch's name of it. threads: torch's, in every process.
    processes: over how many a batch is divided; more than one is started by torchrun.
    jacobian: for so many test samples the singular values of the network's Jacobian are kept (`training.jacobian`).
    """

    epochs: int = 4
    batch: int = 128
    optimizer: Entry = "Adam"
    learning_rate: float = 3e-3
    scaling: Literal["root", "none"] = "root"
    schedule: Entry = ""
    validation: float = 0.0
    structured: bool = True
    device: str = "cpu"
    threads: int = 1
    processes: int = 1
    jacobian: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "learning_rate", float(self.learning_rate))
        for name in ("epochs", "batch", "threads", "processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.jacobian < 0:
            raise ValueError(f"jacobian must be at least 0, got {self.jacobian}")
        if self.batch < self.processes:
            raise ValueError(f"batch must be at least processes, {self.processes}, got {self.batch}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive and finite, got {self.learning_rate}")
        if self.scaling not in ("root", "none"):
            raise ValueError(f"scaling must be root or none, got {self.scaling!r}")
        if not 0 <= self.validation < 1:
            raise ValueError(f"validation must be in [0, 1), got {self.validation}")
        Choice.of(self.optimizer, "optimizer")
        if self.schedule:
            Choice.of(self.schedule, "schedule")


@dataclass(frozen=True)
class Run:
    """One training run, of exactly one of a density in (0, 1] and a dim (neither: ordinary's).

    The method's options are completed from `METHODS`. ValueError for an unknown method or option, a density or dim out
    of range, or a negative seed.
    """

    method: Choice
    model: Choice = MODEL
    data: Choice = DATA
    density: float | None = None
    dim: int | None = None
    seed: int = 0
    train: Training = field(default_factory=Training)
    version: str = subspace.__version__

    def __post_init__(self) -> None:
        known, name = method(self.method.name), self.method.name
        object.__setattr__(self, "method", Choice(name, known.completed(name, self.method.options)))
        if not known.has_density:
            if self.density is not None or self.dim is not None:
                raise ValueError(f"density and dim must be None for {name}, got {self.density} and {self.dim}")
        elif (self.density is None) == (self.dim is None):
            raise ValueError(f"exactly one of density and dim must be given, got {self.density} and {self.dim}")
        elif self.density is not None and not 0 < self.density <= 1:
            raise ValueError(f"density must be in (0, 1], got {self.density}")
        elif self.dim is not None and self.dim < 1:
            raise ValueError(f"dim must be at least 1, got {self.dim}")
        if self.density is not None:
            object.__setattr__(self, "density", float(self.density))
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")

    def __hash__(self) -> int:
        return hash(self.hash)

    def __str__(self) -> str:
        usual = (self.model, self.data) == (MODEL, DATA)
        where = [] if usual else [f"{self.model} on {self.data}"]
        return ", ".join([self.label, *([self.size] if self.size else []), f"seed {self.seed}", *where])

    @property
    def label(self) -> str:
        """The method, and those of its options that are not as ever."""
        return label(self.method)

    @property
    def size(self) -> str:
        """How much is trained, in words; empty for ordinary training."""
        if self.dim is not None:
            return f"dim {self.dim:,}"
        return "" if self.density is None else f"density {self.density:g}"

    @cached_property
    def hash(self) -> str:
        """16 hexadecimal digits: the name of this run's directory."""
        return hashlib.sha256(canonical(self.configuration()).encode()).hexdigest()[:16]

    @property
    def epochs(self) -> int:
        """How many there are at most, those of the rounds that choose U included."""
        return self.train.epochs * (1 + int(self.method.options.get("rounds", 0)))

    @property
    def cost(self) -> float:
        """The expected time, in epochs of ordinary training."""
        return self.epochs * method(self.method.name).cost(self.density or 0.01)

    def configuration(self) -> dict[str, Any]:
        """All of it that a result depends on, as JSON has it: not where the data are. `Run.parse` is the inverse."""
        found = asdict(self)
        found["data"]["options"] = {name: o for name, o in found["data"]["options"].items() if name not in WHERE}
        return found

    @classmethod
    def parse(cls, configuration: Mapping[str, Any]) -> Run:
        """The run whose `configuration()` is this."""
        choices = {name: Choice(**configuration[name]) for name in ("method", "model", "data")}
        return cls(**{**configuration, **choices, "train": Training(**configuration["train"])})


@dataclass(frozen=True)
class Study:
    """Methods x densities (or dims) x seeds x models x data; ordinary training has no density, and is there once.

    name: of the folder that tables, figures and the report go to. methods: "all" stands for each. densities: fractions
    in (0, 1], or in their place dims: numbers of trained entries. seeds: these, or how many: 0, 1, ... ValueError for a
    list that is empty, or for both densities and dims.
    """

    name: str = "study"
    methods: tuple[Entry, ...] = BASIC
    densities: tuple[float, ...] | None = None
    dims: tuple[int, ...] | None = None
    seeds: int | tuple[int, ...] = 3
    models: tuple[Entry, ...] = ("lenet5",)
    data: tuple[Entry, ...] = ("mnist5k",)
    train: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        if self.densities is None and self.dims is None:
            object.__setattr__(self, "densities", DENSITIES)
        if self.densities is not None and self.dims is not None:
            raise ValueError(f"densities or dims must be given, not both, got {self.densities} and {self.dims}")
        if not self.methods:
            raise ValueError(f"methods must be some of {', '.join(METHODS)}, got none")
        if not self.data:
            names = [Choice.of(name, "method").name for entry in self.methods for name in every(entry)]
            needing = [name for name in names if method(name).needs_data]
            also = f", which {', '.join(needing)} also choose U by" if needing else ""
            raise ValueError(f"data must be at least one data set to train on{also}, got none")
        for name in ("densities", "dims", "models"):
            if getattr(self, name) == ():
                raise ValueError(f"{name} must have at least one entry, got none")
        if self.seeds == () or (isinstance(self.seeds, int) and self.seeds < 1):
            raise ValueError(f"seeds must be at least one, got {self.seeds or 'none'}")
        if not self.name or set(self.name) & set("/\\") or self.name.startswith(".") or self.name == "runs":
            raise ValueError(f"name must be that of a folder other than runs, got {self.name!r}")

    def runs(self) -> list[Run]:
        """Every run once, by data, model, method, size and seed. ValueError for what a `Run` does not take."""
        if self.dims is not None:
            sizes: list[dict[str, Any]] = [{"dim": dim} for dim in self.dims]
        else:
            sizes = [{"density": density} for density in self.densities or ()]
        grid = (
            Run(chosen, model, data, seed=seed, train=self.train, **size)
            for data in (Choice.of(entry, "data") for entry in self.data)
            for model in (Choice.of(entry, "model") for entry in self.models)
            for chosen in (Choice.of(name, "method") for entry in self.methods for name in every(entry))
            for size in (sizes if method(chosen.name).has_density else [{}])
            for seed in (range(self.seeds) if isinstance(self.seeds, int) else self.seeds)
        )
        return list(dict.fromkeys(grid))


def every(entry: Entry) -> Iterable[Entry]:
    """The entries that an entry for methods stands for: "all" is each of `METHODS`."""
    return METHODS if entry == "all" else [entry]


def label(chosen: Choice) -> str:
    """A method's label, and its options where they are not those of `METHODS`."""
    return method(chosen.name).named(chosen.options)
