"""MNIST (LeCun et al. 1998) and Fashion-MNIST (Xiao et al. 2017) from their published files, of the IDX format.

Four files lie in a folder of data_dir, as they were published, packed anew, or unpacked: their MD5 is that of what is
in them. 28 x 28 grey images of ten classes.
"""

from __future__ import annotations

import gzip
import hashlib
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from subspace.study.data.archives import DAMAGE, data_folder
from subspace.study.data.images import Images, image_data, smaller
from subspace.study.data.samples import Data

CLASSES = 10
KINDS = {"images": ("images-idx3-ubyte", 3), "labels": ("labels-idx1-ubyte", 1)}  # the end of a name, dimensions
PARTS = {"train": "train", "test": "t10k"}  # the beginning of a name


class Published(NamedTuple):
    """Where four files are published, the folders they may lie in, their MD5 unpacked, and the pixels' mean and std."""

    address: str
    folders: tuple[str, ...]
    md5: dict[str, str]
    mean: float
    std: float

    def get(self, data_dir: str | Path | None, download: bool = False) -> Path:
        """The folder with the files; ValueError, saying where to get them, where there is none, or one is missing."""
        above = data_folder(data_dir)
        folders = [above / name for name in self.folders]
        folders += [above] if above.name in self.folders else []
        for folder in folders:
            if all(any(path.is_file() for path in _paths(folder, name)) for name in self.md5):
                return folder
        raise ValueError(
            f"data_dir must be a folder with {self.folders[0]}/{next(iter(self.md5))}.gz and {len(self.md5) - 1} more "
            f"files, got {above} without: save the four of {self.address} there, or name another folder by data_dir or "
            "the variable SUBSPACE_DATA"
        )


MNIST = Published(
    address="https://ossci-datasets.s3.amazonaws.com/mnist/",
    folders=("mnist", "MNIST/raw"),
    md5={
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    mean=0.1307,
    std=0.3081,
)
FASHION = Published(
    address="https://github.com/zalandoresearch/fashion-mnist/tree/master/data/fashion/",
    folders=("fashion-mnist", "FashionMNIST/raw"),
    md5={
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
    mean=0.2860,
    std=0.3530,
)


def read_published(
    published: Published,
    data_dir: str | None = None,
    train: int | None = None,
    test: int | None = None,
    verify: bool = True,
) -> Data:
    """60,000 images to train on, 10,000 to test on, (n, 1, 28, 28).

    Args:
        published: which of the two; `mnist` and `fashion_mnist` take all else.
        data_dir: the folder with the files' folder; see `archives.data_folder`.
        train, test: how many of the images, every class in proportion; all by default.
        verify: whether files must have the published checksums.

    Raises:
        ValueError: files are missing, and the error says where to get them; or one, which is named, is damaged.
    """
    folder, parts = published.get(data_dir), []
    for name, count in (("train", train), ("test", test)):
        pixels, labels = (_read(published, folder, name, kind, verify) for kind in KINDS)
        if pixels.shape != (len(labels), 28, 28) or not len(labels) or labels.max() >= CLASSES:
            got = f"{'x'.join(map(str, pixels.shape))} and {len(labels)} labels up to {max(labels, default='none')}"
            raise ValueError(
                f"{folder} must have images of 28 x 28 with a label in range(10) each to {name}, got {got}"
            )
        images = Images(pixels[:, None], labels.astype(np.int64))
        parts.append(images.at(smaller(images.labels, count, name)))
    return image_data(parts[0], parts[1], CLASSES, [published.mean], [published.std], augment=False)


mnist, fashion_mnist = partial(read_published, MNIST), partial(read_published, FASHION)


def parse_idx(content: bytes, dimensions: int, path: Path) -> NDArray[np.uint8]:
    """The bytes of an IDX file as an array of so many dimensions; ValueError, naming the path, for another content."""
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes((0, 0, 8, dimensions)):
        raise ValueError(f"{path} must be IDX of bytes in {dimensions} dimensions, got one that begins {content[:4]!r}")
    shape = [int(size) for size in np.frombuffer(content[4:start], ">u4")]
    numbers = np.frombuffer(content, np.uint8, offset=start)
    if len(numbers) != np.prod(shape, dtype=object):
        raise ValueError(f"{path} must have {'x'.join(map(str, shape))} bytes after its head, got {len(numbers)}")
    return numbers.reshape(shape)


def _read(published: Published, folder: Path, part: str, kind: str, verify: bool) -> NDArray[np.uint8]:
    end, dimensions = KINDS[kind]
    name = f"{PARTS[part]}-{end}"
    path = next(path for path in _paths(folder, name) if path.is_file())  # `get` has seen one
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except DAMAGE as error:
        raise ValueError(
            f"{path} must be as {published.address} has it, got an error in reading it: {error}"
        ) from error
    if verify and (digest := hashlib.md5(content, usedforsecurity=False).hexdigest()) != published.md5[name]:
        raise ValueError(
            f"{path} must have the MD5 {published.md5[name]} unpacked, as at {published.address}, got {digest}"
        )
    return parse_idx(content, dimensions, path)


def _paths(folder: Path, name: str) -> tuple[Path, Path]:
    """Where a file may be, packed or not."""
    return folder / f"{name}.gz", folder / name
