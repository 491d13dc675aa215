"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from their published archives, the Python or the binary version.

An archive lies in data_dir as it was published or unpacked. Its MD5 is checked, or those of the unpacked files (of the
binary version none are published: the classes are counted). Pickles are read without running what they say.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from subspace.study.data.archives import Archive, absent, check_md5, downloaded, home, unpacked
from subspace.study.data.hub import Mirror, from_hub
from subspace.study.data.images import Pictures, chosen, image_data
from subspace.study.data.pickles import loads
from subspace.study.data.samples import Data

SITE = "https://www.cs.toronto.edu/~kriz/"
PIXELS = 3 * 32 * 32


class Kind(NamedTuple):
    """One of the two: files by name, each with the MD5 of its Python version; label_bytes: before every image.

    mean, std: of every channel, as in the experiments of DCTpS.
    """

    classes: int
    label: str
    label_bytes: int
    python: Archive
    binary: Archive
    train: dict[str, str]
    test: dict[str, str]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    mirror: Mirror


TEN = Kind(
    classes=10,
    label="labels",
    label_bytes=1,
    python=Archive(SITE + "cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a", "cifar-10-batches-py"),
    binary=Archive(SITE + "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530", "cifar-10-batches-bin"),
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
    mirror=Mirror("uoft-cs/cifar10", "img", "label"),
)
HUNDRED = Kind(
    classes=100,
    label="fine_labels",
    label_bytes=2,  # the coarse one first
    python=Archive(SITE + "cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85", "cifar-100-python"),
    binary=Archive(SITE + "cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8", "cifar-100-binary"),
    train={"train": "16019d7e3df5f24257cddd939b257f8d"},
    test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    mean=(0.5071, 0.4867, 0.4408),
    std=(0.2675, 0.2565, 0.2761),
    mirror=Mirror("uoft-cs/cifar100", "img", "fine_label"),
)


def cifar10(
    data_dir: str | None = None,
    augment: bool = True,
    train: int | None = None,
    test: int | None = None,
    verify: bool = True,
    download: bool = False,
) -> Data:
    """CIFAR-10: 50,000 images to train on, 10,000 to test on, (n, 3, 32, 32).

    train, test: so many of them, every class in proportion. augment: `crop_and_flip`. verify: that they are those
    published. download: by torchvision or Hugging Face's datasets, if they are not in data_dir. ValueError, saying how
    to get them, if there are none, and naming the file, if one is damaged.
    """
    return cifar(TEN, home(data_dir), augment, (train, test), verify, download)


def cifar100(
    data_dir: str | None = None,
    augment: bool = True,
    train: int | None = None,
    test: int | None = None,
    verify: bool = True,
    download: bool = False,
) -> Data:
    """CIFAR-100 with its 100 fine labels; else as `cifar10`."""
    return cifar(HUNDRED, home(data_dir), augment, (train, test), verify, download)


def cifar(
    kind: Kind, folder: Path, augment: bool, counts: tuple[int | None, int | None], verify: bool, download: bool
) -> Data:
    """Data of that kind, from the folder or, if it may be, from elsewhere."""
    found = read(kind, folder, verify)
    if found is None and download:
        found = read(kind, folder, verify) if downloaded(kind.python, folder) else from_hub(kind.mirror)
    if found is None:
        raise absent(folder, kind.python, kind.binary, download=download)
    parts = []
    for name, pictures, count, size in zip(("train", "test"), found, counts, (50_000, 10_000), strict=True):
        if (
            verify
            and np.bincount(pictures.labels, minlength=kind.classes).tolist() != [size // kind.classes] * kind.classes
        ):
            raise ValueError(
                f"{folder} must have {size // kind.classes} images of every class to {name} on, got another number"
            )
        parts.append(pictures.at(chosen(pictures.labels, count, name)))
    return image_data(parts[0], parts[1], kind.classes, kind.mean, kind.std, augment)


def read(kind: Kind, folder: Path, verify: bool) -> tuple[Pictures, Pictures] | None:
    """The images of the first version that is in the folder, unpacked or not; None if there is none."""
    for archive, ending in ((kind.python, ""), (kind.binary, ".bin")):
        files = {name + ending: md5 for name, md5 in (kind.train | kind.test).items()}
        whole, unfolded = folder / archive.name, folder if folder.name == archive.folder else folder / archive.folder
        if unfolded.is_dir():
            for name, md5 in files.items():
                if not (unfolded / name).is_file():
                    raise ValueError(f"{unfolded} must have the file {name}, got a folder without it")
                if verify and not ending:
                    check_md5(unfolded / name, md5, archive.address)
            texts = {unfolded / name: (unfolded / name).read_bytes() for name in files}
        elif whole.is_file():
            if verify:
                check_md5(whole, archive.md5, archive.address)
            inside = {f"{archive.folder}/{name}": name for name in files}
            texts = {whole / inside[path]: text for path, text in unpacked(whole, inside).items()}
        else:
            continue
        parse = records if ending else batch
        pictures = {path.name.removesuffix(ending): parse(kind, path, text) for path, text in texts.items()}
        train, test = ([pictures[name] for name in names] for names in (kind.train, kind.test))
        return joined(train), joined(test)
    return None


def joined(parts: list[Pictures]) -> Pictures:
    """All of them, in this order."""
    return Pictures(np.concatenate([p.pixels for p in parts]), np.concatenate([p.labels for p in parts]))


def batch(kind: Kind, path: Path, text: bytes) -> Pictures:
    """A file of the Python version: a dictionary with `data`, (n, 3072) bytes, and a list of labels."""
    try:
        content = loads(text)
        pixels, labels = content["data"], np.asarray(content[kind.label])
    except Exception as error:  # a damaged pickle raises whatever it likes
        raise ValueError(
            f"{path} must be a batch of {kind.python.folder}, got an error in reading it: {error}"
        ) from error
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != (len(labels), PIXELS):
        raise ValueError(f"{path} must have {PIXELS} bytes for each of its {len(labels)} labels, got other data")
    return pictures(kind, path, pixels, labels)


def records(kind: Kind, path: Path, text: bytes) -> Pictures:
    """A file of the binary version: for every image its label, of CIFAR-100 after the coarse one, and 3072 bytes."""
    size = kind.label_bytes + PIXELS
    if not text or len(text) % size:
        raise ValueError(f"{path} must have {size} bytes for each of its images, got {len(text)} bytes in all")
    rows = np.frombuffer(text, np.uint8).reshape(-1, size)
    return pictures(kind, path, rows[:, kind.label_bytes :], rows[:, kind.label_bytes - 1])


def pictures(kind: Kind, path: Path, pixels: np.ndarray, labels: np.ndarray[Any, Any]) -> Pictures:
    """Rows of pixels, channel by channel, as images; ValueError for a label that is out of range."""
    if (
        not labels.size
        or labels.ndim != 1
        or labels.dtype.kind not in "iu"
        or labels.min() < 0
        or labels.max() >= kind.classes
    ):
        raise ValueError(f"{path} must have integer labels in range({kind.classes}), got others")
    return Pictures(pixels.reshape(-1, 3, 32, 32), labels.astype(np.int64))
