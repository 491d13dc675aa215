"""Tuners of this package and of peft as one list: each makes a network of some size, and writes its file.

A size is what the tuner is told: a number of trained entries, a rank, a number of frequencies; tuners of one size have
one. The file is what `subspace.save` and peft's `save_pretrained` write (adapter_model.safetensors and
adapter_config.json, which loading needs; not the README), without the head, which is the same for all. Of tuners "in 8
bits" it is what `save(bits=8)` writes, and what is tested is the network that such a file gives back.
"""

from __future__ import annotations

import copy
import io
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import subspace
from benchmarks.tasks import Headed, Task
from subspace import Key, tune

Build = Callable[[nn.Module, Task, int, int], nn.Module]  # a network to be tuned, its task, a size, a seed


class Tuner(NamedTuple):
    """library: "subspace" or "peft". most: the largest size that there can be, for a task; least: the smallest.

    bits: of a number in its file, where these are not float32.
    """

    library: str
    build: Build
    most: Callable[[Task], int]
    least: Callable[[Task], int] = lambda task: 1
    bits: int | None = None


def weights(task: Task) -> list[torch.Tensor]:
    """The weights that are tuned."""
    named = (each for each in task.base.named_modules() if each[0].rsplit(".", 1)[-1] in task.targets)
    return [module.weight for _, module in named]


def numbers(task: Task) -> int:
    """How many weights are tuned."""
    return sum(weight.numel() for weight in weights(task))


def count(task: Task) -> int:
    """How many tensors are tuned, of which each needs a number."""
    return len(weights(task))


def least_side(task: Task) -> int:
    """The largest rank that all weights have."""
    return min(min(weight.flatten(1).shape) for weight in weights(task))


def ours(recipe: Callable[..., nn.Module], size: str) -> Build:
    """A recipe of `subspace.tune`, whose size is its argument of that name; "" for one without a size."""

    def build(model: nn.Module, task: Task, value: int, seed: int) -> nn.Module:
        given: dict[str, Any] = {size: value} if size else {}
        recipe(model, include=list(task.targets), also_train=["head"], seed=seed, **given)
        return subspace.structured(model)

    return build


def theirs(config: Callable[[Task, int, int], Any]) -> Build:
    """A tuner of peft by its configuration, of a task, a size and a seed; the head trains beside it."""

    def build(model: nn.Module, task: Task, value: int, seed: int) -> nn.Module:
        import peft

        torch.manual_seed(seed)  # of what peft draws
        chosen = config(task, value, seed)
        chosen.target_modules, chosen.modules_to_save = list(task.targets), ["head"]
        if isinstance(chosen, peft.IA3Config):
            chosen.feedforward_modules = []
        found: nn.Module = peft.get_peft_model(model, chosen)
        return found

    return build


def _peft(name: str, size: str = "", **options: Any) -> Build:
    def config(task: Task, value: int, seed: int) -> Any:
        import peft

        given = {size: value} if size else {}
        return getattr(peft, f"{name}Config")(**given, **options)

    return theirs(config)


def _seeded(name: str, size: str, key: str, **options: Any) -> Build:
    """As `_peft`, where the configuration takes a seed."""

    def config(task: Task, value: int, seed: int) -> Any:
        import peft

        return getattr(peft, f"{name}Config")(**{size: value, key: seed}, **options)

    return theirs(config)


TUNERS = {
    "head only": Tuner("subspace", lambda model, task, value, seed: only_head(model), lambda task: 1),
    "sparse": Tuner("subspace", ours(tune.sparse, "dim"), numbers, count),
    "fourier_ft": Tuner("subspace", ours(tune.fourier_ft, "dim"), numbers, count),
    "basis": Tuner("subspace", ours(tune.basis, "dim"), numbers, count),
    "hashed": Tuner("subspace", ours(tune.hashed, "dim"), numbers, count),
    "srht": Tuner("subspace", ours(tune.srht, "dim"), numbers),
    "lora_xs": Tuner("subspace", ours(tune.lora_xs, "rank"), least_side),
    "ia3": Tuner("subspace", ours(tune.ia3, ""), lambda task: 1),
    "peft LoRA": Tuner("peft", _peft("Lora", "r"), least_side),
    "peft FourierFT": Tuner(
        "peft", _seeded("FourierFT", "n_frequency", "random_loc_seed"), lambda t: min(w.numel() for w in weights(t))
    ),
    "peft SHiRA": Tuner("peft", _seeded("Shira", "r", "random_seed"), least_side),
    "peft VeRA": Tuner("peft", _seeded("Vera", "r", "projection_prng_key", save_projection=False), least_side),
    "peft IA3": Tuner("peft", _peft("IA3"), lambda task: 1),
}
IN_BITS = ("sparse", "fourier_ft", "hashed", "srht", "lora_xs")
TUNERS |= {f"{name}, 8 bits": TUNERS[name]._replace(bits=8) for name in IN_BITS}


def only_head(model: nn.Module) -> nn.Module:
    """The network with nothing tuned but its head."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("head."))
    return model


def made(task: Task, name: str, size: int, seed: int) -> nn.Module:
    """The network of a task with a fresh head, to be tuned; raises what the tuner says where it cannot."""
    model = Headed(copy.deepcopy(task.base), task.features, task.classes, Key(seed).fold("head"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return TUNERS[name].build(model, task, size, seed)


def file_bytes(model: nn.Module, task: Task, bits: int | None = None) -> int:
    """The size of the file without the head; 0 where nothing else is tuned."""
    if hasattr(model, "peft_config"):
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            files = [path for path in Path(folder).iterdir() if path.name.startswith("adapter_")]
            return sum(path.stat().st_size for path in files) - 4 * (task.features + 1) * task.classes
    if next(subspace.subspaces(model), None) is None:
        return 0
    head = model.get_submodule("head").requires_grad_(False)  # as if it were the base's, which no file holds
    subspace.save(model, file := io.BytesIO(), base=model.state_dict(), bits=bits)
    head.requires_grad_(True)
    return file.tell()


def most_bytes(task: Task, name: str, size: int) -> int:
    """The size of a tuner's file, with numbers that no coder makes fewer bits of where it has one."""
    model = made(task, name, size, 0)
    if TUNERS[name].bits:
        for _, space in subspace.subspaces(model):
            nn.init.uniform_(space.theta, -1, 1)
    return file_bytes(model, task, TUNERS[name].bits)


def largest_size(task: Task, name: str, budget: int) -> int:
    """The largest size of a tuner whose file has at most `budget` bytes; 0 if it has none, or cannot tune the task."""

    def fits(size: int) -> bool:
        return most_bytes(task, name, size) <= budget

    low = TUNERS[name].least(task)
    try:
        if not fits(low):
            return 0
    except Exception as error:  # of peft, of many kinds, for layers that a tuner does not take
        print(f"{name} cannot tune {task.name}: {' '.join(str(error).split())[:150]}", flush=True)
        return 0
    high, most = 2 * low, TUNERS[name].most(task)
    while high <= most and fits_or_not(fits, high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > max(1, low // 64):
        middle = (low + high) // 2
        low, high = (middle, high) if fits_or_not(fits, middle) else (low, middle)
    return low


def fits_or_not(fits: Callable[[int], bool], size: int) -> bool:
    """Whether a size fits, and the tuner takes it at all."""
    try:
        return fits(size)
    except (ValueError, RuntimeError):
        return False
