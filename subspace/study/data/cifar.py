"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from their published archives, the Python version.

An archive lies in data_dir as it was published or unpacked, and its MD5, or those of the unpacked files, are checked.
Its pickles are never unpickled: pixels and labels are picked out of their text.
"""

from __future__ import annotations

import pickletools
import tarfile
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from subspace.study.data.archives import Archive, check_md5
from subspace.study.data.images import Images, image_data, smaller
from subspace.study.data.samples import Data

SITE = "https://www.cs.toronto.edu/~kriz/"
PIXELS = 3 * 32 * 32


class Kind(NamedTuple):
    """One of the two: its files by name with the MD5 of each; mean and std of every channel as Price and Tanner."""

    classes: int
    label: str
    archive: Archive
    train: dict[str, str]
    test: dict[str, str]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


TEN = Kind(
    classes=10,
    label="labels",
    archive=Archive(SITE + "cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a", "cifar-10-batches-py"),
    train={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    },
    test={"test_batch": "40351d587109b95175f43aff81a1287e"},
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2023, 0.1994, 0.2010),
)
HUNDRED = Kind(
    classes=100,
    label="fine_labels",
    archive=Archive(SITE + "cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85", "cifar-100-python"),
    train={"train": "16019d7e3df5f24257cddd939b257f8d"},
    test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    mean=(0.5071, 0.4867, 0.4408),
    std=(0.2675, 0.2565, 0.2761),
)


def cifar(
    kind: Kind,
    data_dir: str | None = None,
    augment: bool = True,
    train: int | None = None,
    test: int | None = None,
    verify: bool = True,
    download: bool = False,
) -> Data:
    """50,000 images to train on, 10,000 to test on, (n, 3, 32, 32); of CIFAR-100 with its 100 fine labels.

    Args:
        kind: which of the two; `cifar10` and `cifar100` take all else.
        data_dir: the folder with the archive; see `archives.data_folder`.
        augment: whether images to train on are cropped and flipped, as `images.crop_and_flip`.
        train, test: how many of the images, every class in proportion; all by default.
        verify: whether files must have the published checksums.
        download: whether the archive is downloaded where it is not there.

    Raises:
        ValueError: there is none, and the error says how to get it; or a file, which is named, is damaged.
    """
    path, parts = kind.archive.get(data_dir, download), []
    texts = contents(kind, path, verify)
    for name, files, count in (("train", kind.train, train), ("test", kind.test, test)):
        batches = [parsed(kind, path / file, texts[file]) for file in files]
        images = Images(*map(np.concatenate, zip(*batches, strict=True)))
        parts.append(images.at(smaller(images.labels, count, name)))
    return image_data(parts[0], parts[1], kind.classes, kind.mean, kind.std, augment)


cifar10, cifar100 = partial(cifar, TEN), partial(cifar, HUNDRED)


def contents(kind: Kind, path: Path, verify: bool) -> dict[str, bytes]:
    """The files of the archive, or of its folder, by name."""
    files = kind.train | kind.test
    if path.is_dir():
        with kind.archive.reading(path):
            found = {file: (path / file).read_bytes() for file in files}
        for file in files if verify else ():
            check_md5(path / file, files[file], kind.archive.address)
        return found
    if verify:
        check_md5(path, kind.archive.md5, kind.archive.address)
    names = {f"{kind.archive.folder}/{file}": file for file in files}
    with kind.archive.reading(path), tarfile.open(path, "r:gz") as archive:  # in one pass
        members = ((names.get(member.name.removeprefix("./")), archive.extractfile(member)) for member in archive)
        found = {name: file.read() for name, file in members if name and file}
    if missing := files.keys() - found:
        raise ValueError(f"{path} must have the file {min(missing)}, got an archive without it")
    return found


def parsed(kind: Kind, path: Path, text: bytes) -> Images:
    """The images of a pickled dictionary: its longest text is the pixels, and the integers after "labels" these."""
    with kind.archive.reading(path):
        operations = [(code.name, value) for code, value, _ in pickletools.genops(text)]
    kinds = (str, bytes, bytearray)
    texts = [(place, raw(value)) for place, (_, value) in enumerate(operations) if isinstance(value, kinds)]
    pixels = max((text for _, text in texts), key=len, default=b"")
    labels: list[Any] = []
    for (start, name), end in zip(texts, [*(place for place, _ in texts[1:]), len(operations)], strict=False):
        if name == kind.label.encode():
            labels = [value for code, value in operations[start:end] if code.startswith(("BININT", "LONG", "INT"))]
    if not labels or min(labels) < 0 or max(labels) >= kind.classes or len(pixels) != PIXELS * len(labels):
        raise ValueError(f"{path} must have {PIXELS} bytes for each of its labels in range({kind.classes}), got others")
    return Images(np.frombuffer(pixels, np.uint8).reshape(-1, 3, 32, 32), np.array(labels, np.int64))


def raw(value: str | bytes | bytearray) -> bytes:
    """A text of Python 2, or one that stands for bytes, as bytes."""
    return value.encode("latin1", "ignore") if isinstance(value, str) else bytes(value)
