"""Data sets to compare methods on: one function from its options to a `Data` for each, and yours by import path.

A new one is a file and a line in `DATA`. One of your own is named by its import path, as "mypkg.mymodule:make": a
function from options to a `Data`, or to a pair (train, test) of map-style Datasets of (input, label), or to three,
(train, test, num_classes); samples may be ours too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from subspace import Key
from subspace.study.data.archives import Archive
from subspace.study.data.cifar import HUNDRED, TEN, cifar10, cifar100
from subspace.study.data.digits import digits
from subspace.study.data.idx import FASHION, MNIST, Published, fashion_mnist, mnist
from subspace.study.data.mnist1d import mnist1d
from subspace.study.data.mnist5k import mnist5k
from subspace.study.data.samples import Data, Items, Samples, Tensors
from subspace.study.data.stdlib import stdlib
from subspace.study.data.subsets import stratified
from subspace.study.data.tiny_imagenet import ARCHIVE, tiny_imagenet
from subspace.study.entries.entry import Choice
from subspace.study.entries.lookup import lookup
from subspace.study.entries.options import arguments, call_with_options
from subspace.study.entries.seeding import seeded

DATA: dict[str, Callable[..., Data]] = {
    "mnist5k": mnist5k,
    "digits": digits,
    "mnist1d": mnist1d,
    "stdlib": stdlib,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "tiny_imagenet": tiny_imagenet,
}
ARCHIVES: dict[str, Archive | Published] = {
    "mnist": MNIST,
    "fashion_mnist": FASHION,
    "cifar10": TEN.archive,
    "cifar100": HUNDRED.archive,
    "tiny_imagenet": ARCHIVE,
}
__all__ = ["DATA", "Data", "Items", "Samples", "Tensors", "load", "stratified", *DATA]


@lru_cache(maxsize=2)
def load(choice: Choice) -> Data:
    """The data of a choice, the same every time; a process keeps the last two. No global generator is moved.

    ValueError for a name or an option that is not known, and for what is not data to train and to test on (`checked`).
    """
    with seeded(Key(0).fold("data").fold(choice.name)):  # for one's own that divides its samples at random
        return checked(call_with_options(find(choice.name), choice, {}), choice.name)


def find(name: str) -> Callable[..., Any]:
    """The function called `name` or at that import path; ValueError with the names, and the nearest, if none."""
    found = lookup(name, DATA, "data", importable=True)
    if not callable(found):
        raise ValueError(f"data must be a function that returns data, got {type(found).__name__} at {name!r}")
    return found


def require(choice: Choice) -> None:
    """ValueError for an option that is not known, or an archive that is not on this machine; loads nothing."""
    given = arguments(find(choice.name), choice, {})
    archive = ARCHIVES.get(choice.name)
    if archive and not given.get("download"):
        archive.get(given.get("data_dir"), download=False)


def checked(made: Any, name: str) -> Data:
    """What a function of that name returned, as a `Data`.

    ValueError if it is not two or three of them, if one is no Dataset or has no samples, or if a label is out of range;
    num_classes is the largest label and one where it is not given.
    """
    if not isinstance(made, tuple | list) or len(made) not in (2, 3):
        got = f"{len(made)} of them" if isinstance(made, tuple | list) else type(made).__name__
        raise ValueError(f"data of {name} must be (train, test) or (train, test, num_classes), got {got}")
    train, test = (part if isinstance(part, Samples) else Items(part) for part in made[:2])
    for part, purpose in ((train, "train"), (test, "test")):
        if not len(part):
            raise ValueError(f"data of {name} must have samples to {purpose} on, got none")
    shapes = [tuple(part.labels.shape[1:]) for part in (train, test)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"labels of {name} must be of one shape to train and to test on, got {shapes[0]} and {shapes[1]}"
        )
    lowest = min(int(part.labels.min()) for part in (train, test))
    highest = max(int(part.labels.max()) for part in (train, test))
    num_classes = made[2] if len(made) == 3 else highest + 1
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(f"num_classes of {name} must be an integer of at least 1, got {num_classes!r}")
    if lowest < 0 or highest >= num_classes:
        wrong = lowest if lowest < 0 else highest
        raise ValueError(f"labels of {name} must be in range({num_classes}), got {wrong}")
    return Data(train, test, num_classes)
