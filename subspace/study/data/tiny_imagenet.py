"""Tiny ImageNet (Stanford CS231n, 2015) from its published zip file: 200 classes of 64 x 64 images.

It lies in data_dir as it was published, when its MD5 is checked, or unpacked, when the classes are counted. The 10,000
images of its validation part are tested on, since those of its test part have no labels. Labels are the classes'
places in alphabetical order, as torchvision's ImageFolder has them. Needs Pillow; to decode all takes half a minute.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import numpy as np

from subspace.study.data.archives import Archive, absent, check_md5, downloaded, home
from subspace.study.data.hub import Mirror, from_hub
from subspace.study.data.images import Pictures, chosen, image_data
from subspace.study.data.samples import Data

ARCHIVE = Archive(
    "http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de", "tiny-imagenet-200"
)
MIRROR = Mirror("zh-plus/tiny-imagenet", "image", "label", test="valid")
MEAN = (0.48024578664982126, 0.44807218089384643, 0.3975477478649648)
STD = (0.2769864069088257, 0.26906448510256, 0.282081906210584)
SIZE, CLASSES, EACH = 64, 200, {"train": 500, "test": 50}

Read = Callable[[str], bytes]  # a file of the archive, by its name in the archive's folder


def tiny_imagenet(
    data_dir: str | None = None,
    augment: bool = True,
    train: int | None = None,
    test: int | None = None,
    verify: bool = True,
    download: bool = False,
) -> Data:
    """Tiny ImageNet: 100,000 images to train on, 10,000 to test on, (n, 3, 64, 64); only those asked for are decoded.

    Options and errors are those of `cifar10`.
    """
    folder, counts = home(data_dir), {"train": train, "test": test}
    found = read(folder, counts, verify)
    if found is None and download:
        if downloaded(ARCHIVE, folder):
            found = read(folder, counts, verify)
        elif parts := from_hub(MIRROR):
            found = [p.at(chosen(p.labels, counts[n], n)) for p, n in zip(parts, counts, strict=True)]
    if found is None:
        raise absent(folder, ARCHIVE, download=download)
    return image_data(found[0], found[1], CLASSES, MEAN, STD, augment)


def read(folder: Path, counts: dict[str, int | None], verify: bool) -> list[Pictures] | None:
    """So many images to train on and to test on, from the zip file or its folder; None if there is neither."""
    whole, unfolded = folder / ARCHIVE.name, folder if folder.name == ARCHIVE.folder else folder / ARCHIVE.folder
    if unfolded.is_dir():
        return selected(unfolded, lambda name: (unfolded / name).read_bytes(), counts, verify)
    if not whole.is_file():
        return None
    if verify:
        check_md5(whole, ARCHIVE.md5, ARCHIVE.address)
    with readable(whole):
        archive = ZipFile(whole)
    with archive:
        return selected(whole, lambda name: archive.read(f"{ARCHIVE.folder}/{name}"), counts, verify)


def selected(source: Path, read_file: Read, counts: dict[str, int | None], verify: bool) -> list[Pictures]:
    """The images asked for, decoded."""
    if find_spec("PIL") is None:
        raise ValueError("Pillow must be installed for tiny_imagenet, got none: pip install pillow")
    with readable(source):
        parts = listed(read_file)
    found = []
    for name, files in parts.items():
        labels = np.array([label for _, label in files], np.int64)
        if verify and np.bincount(labels, minlength=CLASSES).tolist() != [EACH[name]] * CLASSES:
            raise ValueError(
                f"{source} must have {EACH[name]} images of each of {CLASSES} classes to {name} on, got another number"
            )
        places = chosen(labels, counts[name], name)
        pixels = np.empty((len(places), SIZE, SIZE, 3), np.uint8)
        for row, place in enumerate(places):
            with readable(source / files[place][0]):
                pixels[row] = decoded(read_file(files[place][0]))
        found.append(Pictures(pixels.transpose(0, 3, 1, 2), labels[places]))
    return found


def listed(read_file: Read) -> dict[str, list[tuple[str, int]]]:
    """The names and labels of all images, by the lists that the archive has of them."""
    classes = sorted(read_file("wnids.txt").decode().split())
    label = {wnid: place for place, wnid in enumerate(classes)}
    train = [
        (f"train/{wnid}/images/{line.split()[0]}", label[wnid])
        for wnid in classes
        for line in read_file(f"train/{wnid}/{wnid}_boxes.txt").decode().splitlines()
    ]
    lines = [line.split("\t") for line in read_file("val/val_annotations.txt").decode().splitlines()]
    return {"train": train, "test": [(f"val/images/{name}", label[wnid]) for name, wnid, *_ in lines]}


def decoded(text: bytes) -> np.ndarray:
    """A JPEG file as (64, 64, 3) bytes, grey ones too; ValueError for an image of another size."""
    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(text)).convert("RGB"))
    if pixels.shape != (SIZE, SIZE, 3):
        raise ValueError(f"an image must have {SIZE} x {SIZE} pixels, got {pixels.shape[1]} x {pixels.shape[0]}")
    return pixels


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """ValueError naming the file or folder where what is in it cannot be read."""
    try:
        yield
    except (OSError, EOFError, ValueError, LookupError, SyntaxError, RuntimeError, zlib.error, BadZipFile) as error:
        raise ValueError(f"{path} must be as {ARCHIVE.address} has it, got an error in reading it: {error}") from error
