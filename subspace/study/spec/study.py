"""What is run: everything that influences a result is in one frozen `Run`, and a `Study` is a grid of them.

All of it is plain dataclasses, so a `Study` is what a TOML or JSON file says, one to one (`spec.files`). A method, a
model, a data set, an optimizer and a schedule are each an entry: a name, or a table of a name and its options, as
"rigl" or {name = "rigl", delta_t = 100}.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from numbers import Real
from typing import Any, Literal

import subspace
from subspace.study.entries.entry import Choice, Entry, canonical, listed
from subspace.study.entries.lookup import require_known
from subspace.study.methods import BASIC, METHODS, method
from subspace.study.methods.registry import earlier, recipe_name

MODEL, DATA = Choice("lenet5"), Choice("mnist5k")
DENSITIES = (0.1, 0.01, 0.001)
SIZES = ("density", "dim", "bytes")  # of what is trained: a run has one of them
WHERE = ("data_dir", "download")  # options of the data sets here that say where they are found
AXES = dict(zip(SIZES, ("densities", "dims", "bytes"), strict=True))  # the field of a study that lists each size
LIMIT = 100_000
ENTRIES = {"methods": "method", "models": "model", "data": "data"}  # the lists of entries, and what one of them is


@dataclass(frozen=True)
class Training:
    """How a network is trained. ValueError, naming the field, for a value that is out of range.

    epochs, batch: passes over the training samples, and samples in a step.
    optimizer: a class of `torch.optim`, with options: {name = "SGD", momentum = 0.9}.
    learning_rate: that of the dense network. scaling: "root", for learning_rate / density^(1/2) at every density (see
    `training.loop`), or "none".
    schedule: a class of `torch.optim.lr_scheduler`, stepped after every epoch; "" for none.
    validation: the share of the training samples that is held apart and never trained on.
    structured: whether layers compute with d and U themselves, as `subspace.structured` does.
    device: torch's name of it. threads: torch's, in every process.
    processes: over how many a batch is divided (`training.team`).
    jacobian: the number of test samples at which the Jacobian's singular values are measured (`training.jacobian`).
    theta_bits: of a number of theta in the file that is kept, 2 to 8 as `subspace.save` has them, 0 for exact numbers;
    networks are tested as their files give them back.
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
    theta_bits: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "threads", "processes"):
            require_integer(name, getattr(self, name), 1)
        require_integer("jacobian", self.jacobian, 0)
        if type(self.theta_bits) is not int or self.theta_bits not in (0, *range(2, 9)):
            raise ValueError(f"theta_bits must be 0 or an integer from 2 to 8, got {self.theta_bits!r}")
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
    """One training run, of exactly one of a density in (0, 1], a dim and bytes (none: ordinary training).

    bytes: of the file that is kept, at most; as many numbers are trained as surely fit. The method's options are
    completed with its defaults. ValueError for an unknown method or option, and for a density, a dim, bytes or a seed
    that is out of range.
    """

    method: Choice
    model: Choice = MODEL
    data: Choice = DATA
    density: float | None = None
    dim: int | None = None
    bytes: int | None = None
    seed: int = 0
    train: Training = field(default_factory=Training)
    version: str = subspace.__version__

    def __post_init__(self) -> None:
        known, name = method(self.method.name), self.method.name
        object.__setattr__(self, "method", Choice(name, known.with_defaults(name, self.method.options)))
        given = {each: value for each in SIZES if (value := getattr(self, each)) is not None}
        if len(given) != known.has_density:
            wanted = f"exactly one of {', '.join(SIZES)}" if known.has_density else "no size"
            raise ValueError(f"{wanted} must be given for {name}, got {given or 'none'}")
        if self.density is not None and not 0 < self.density <= 1:
            raise ValueError(f"density must be in (0, 1], got {self.density}")
        for each in given.keys() - {"density"}:
            require_integer(each, given[each], 1)
        if self.bytes is not None and (known.prunes or "rounds" in known.options):
            raise ValueError(f"bytes must be None for {name}, whose size training tells, got {self.bytes}")
        require_integer("seed", self.seed, 0)

    def __hash__(self) -> int:
        return hash(self.hash)

    def __str__(self) -> str:
        where = [] if (self.model, self.data) == (MODEL, DATA) else [f"{self.model} on {self.data}"]
        return ", ".join([self.label, *([self.size] if self.size else []), f"seed {self.seed}", *where])

    @property
    def label(self) -> str:
        """The method's label, with its non-default options."""
        return label(self.method)

    @property
    def size(self) -> str:
        """How much is trained, in words; empty for ordinary training."""
        if self.dim is not None:
            return f"dim {self.dim:,}"
        if self.bytes is not None:
            return f"{self.bytes:,} bytes"
        return "" if self.density is None else f"density {self.density:g}"

    @cached_property
    def hash(self) -> str:
        """16 hexadecimal digits: the name of this run's directory."""
        return hashlib.sha256(canonical(self.configuration()).encode()).hexdigest()[:16]

    @property
    def epochs(self) -> int:
        """The most epochs that there can be, those of the rounds that choose U included."""
        options = self.method.options
        rounds = int(options.get("rounds", 0)) + (options.get("embedding") == "lottery")
        return self.train.epochs * (1 + rounds) + int(options.get("burn_in", 0))

    @property
    def cost(self) -> float:
        """The expected time, in epochs of ordinary training."""
        return self.epochs * method(self.method.name).cost(self.density or 0.01)

    def configuration(self) -> dict[str, Any]:
        """All that a result depends on, as JSON has it: not where the data are. `Run.parse` is the inverse.

        An option that is younger than this format is left out where it says what was done before there was one.
        """
        found = asdict(self)
        found["data"]["options"] = without_place(self.data)
        options = found["method"]["options"]
        before = earlier(self.method)
        found["method"]["options"] = {name: o for name, o in options.items() if before.get(name, None) != o}
        found["train"] |= {name: float(found["train"][name]) for name in ("learning_rate", "validation")}
        for name in ("optimizer", "schedule"):
            if isinstance(entry := found["train"][name], Mapping) and list(entry) == ["name"]:
                found["train"][name] = entry["name"]  # what has no options is its name
        found["density"] = None if self.density is None else float(self.density)
        for table, name in ((found, "bytes"), (found["train"], "theta_bits")):
            if not table[name]:
                del table[name]
        return found

    @classmethod
    def parse(cls, configuration: Mapping[str, Any]) -> Run:
        """The run whose `configuration()` is this."""
        choices = {name: Choice(**configuration[name]) for name in ("method", "model", "data")}
        choices["method"] = Choice(choices["method"].name, earlier(choices["method"]) | dict(choices["method"].options))
        return cls(**{**configuration, **choices, "train": Training(**configuration["train"])})


@dataclass(frozen=True)
class Study:
    """Methods x densities (or dims, bytes) x seeds x models x data; ordinary training has no size, and is there once.

    name: of the folder that tables, figures and the report go to. methods: "all" stands for each. densities:
    fractions in (0, 1], or in their place dims: numbers of trained entries, or bytes: of the files that are kept.
    seeds: these, or how many: 0, 1, ... limit: the most runs that there may be. A value stands for a list of it, a
    table for a `Training`, a function or class of a module, or a recipe, for its name. ValueError for a list that
    is empty, for two kinds of sizes, and for a function that other processes cannot import.
    """

    name: str = "study"
    methods: tuple[Entry, ...] = BASIC
    densities: tuple[float, ...] | None = None
    dims: tuple[int, ...] | None = None
    seeds: int | tuple[int, ...] = 3
    models: tuple[Entry, ...] = ("lenet5",)
    data: tuple[Entry, ...] = ("mnist5k",)
    train: Training = field(default_factory=Training)
    limit: int = LIMIT
    bytes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        self._take_bare_values()
        given = {name: value for name in AXES.values() if (value := getattr(self, name)) is not None}
        if not given:
            object.__setattr__(self, "densities", DENSITIES)
        if len(given) > 1:
            got = " and ".join(map(str, given.values()))
            raise ValueError(f"one of {', '.join(AXES.values())} must be given, got {got}")
        if not self.methods:
            raise ValueError(f"methods must be some of {', '.join(METHODS)}, got none")
        if not self.data:
            needing = [chosen.name for chosen in self.choices() if method(chosen.name).needs_data]
            also = f", which {', '.join(needing)} also choose U by" if needing else ""
            raise ValueError(f"data must be at least one data set to train on{also}, got none")
        for name in (*AXES.values(), "models"):
            if getattr(self, name) == ():
                raise ValueError(f"{name} must have at least one entry, got none")
        if self.seeds == () or (isinstance(self.seeds, int) and self.seeds < 1):
            raise ValueError(f"seeds must be at least one, got {self.seeds or 'none'}")
        folder = self.name.isprintable() and 0 < len(self.name.encode()) <= 200
        if not folder or set(self.name) & set("/\\") or self.name.startswith(".") or self.name == "runs":
            raise ValueError(f"name must be that of a folder other than runs, of at most 200 bytes, got {self.name!r}")

    def _take_bare_values(self) -> None:
        """Make lists of values that stand for one, and entries as a file has them of what Python has for them."""
        for name in (*ENTRIES, *AXES.values()):
            if (value := getattr(self, name)) is not None:
                entries = [as_entry(each, ENTRIES[name]) if name in ENTRIES else each for each in listed(value)]
                object.__setattr__(self, name, tuple(entries))
        for name in AXES.values():
            numbers = [each for each in getattr(self, name) or () if isinstance(each, Real)]
            if other := [each for each in getattr(self, name) or () if each not in numbers]:
                raise ValueError(f"{name} must be numbers, got {other[0]!r}")
        if not isinstance(self.train, Training):
            object.__setattr__(self, "train", training(self.train))

    def choices(self) -> list[Choice]:
        """The methods, those that "all" stands for included."""
        return [Choice.of(name, "method") for entry in self.methods for name in expand_all(entry)]

    def sizes(self) -> list[dict[str, Any]]:
        """The sizes of the grid, each as a field of a `Run`."""
        return [{size: value} for size, axis in AXES.items() for value in getattr(self, axis) or ()]

    def count(self) -> int:
        """How many runs the grid has, without building them; one that is there twice counts twice."""
        sizes = len(self.sizes())
        sized = sum(sizes if method(chosen.name).has_density else 1 for chosen in self.choices())
        seeds = self.seeds if isinstance(self.seeds, int) else len(self.seeds)
        return len(self.data) * len(self.models) * sized * seeds

    def runs(self) -> list[Run]:
        """Every run once, by data, model, method, size and seed.

        Raises ValueError for what a `Run` does not take, and for a grid of more than `limit` runs.
        """
        if (count := self.count()) > self.limit:
            raise ValueError(f"a study must have at most {self.limit:,} runs, got {count:,}: set limit to allow them")
        sizes = self.sizes()
        grid = (
            Run(chosen, model, data, seed=seed, train=self.train, **size)
            for data in (Choice.of(entry, "data") for entry in self.data)
            for model in (Choice.of(entry, "model") for entry in self.models)
            for chosen in self.choices()
            for size in (sizes if method(chosen.name).has_density else [{}])
            for seed in (range(self.seeds) if isinstance(self.seeds, int) else self.seeds)
        )
        return list(dict.fromkeys(grid))


def as_entry(entry: Any, what: str) -> Entry:
    """The entry of a study as a file has it: a function, a class or a recipe by its name."""
    if callable(entry):
        return recipe_name(entry) or Choice.of(entry, what).name
    chosen = Choice.of(entry, what)
    return {"name": chosen.name, **chosen.options} if isinstance(entry, Choice) else entry


def training(table: Any) -> Training:
    """The training that a table of its fields says; ValueError for what is none, or a key that is no field."""
    if not isinstance(table, Mapping):
        raise ValueError(f"train must be a Training or a table of its fields, got {table!r}")
    require_known(table, [field.name for field in fields(Training)], "train must have keys among")
    return Training(**table)


def expand_all(entry: Entry) -> Iterable[Entry]:
    """The entries that an entry for methods stands for: "all" is each of `METHODS`."""
    return METHODS if entry == "all" else [entry]


def without_place(data: Choice) -> dict[str, Any]:
    """The options of a data set but for where it is found; of your own function all of them say what is there."""
    here = () if ":" in data.name else WHERE
    return {name: value for name, value in data.options.items() if name not in here}


def label(chosen: Choice) -> str:
    """A method's label, with its non-default options."""
    return method(chosen.name).label_for(chosen.options)


def require_integer(name: str, value: object, least: int) -> None:
    """ValueError for what is no integer from `least` to what tables can hold."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
        raise ValueError(f"{name} must be an integer of at least {least} and below 2^63, got {value!r}")
