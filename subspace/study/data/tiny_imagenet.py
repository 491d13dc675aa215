"""Tiny ImageNet (Stanford CS231n, 2015) from its published zip file: 200 classes of 64 x 64 images.

It lies in data_dir as it was published, when its MD5 is checked, or unpacked, when the classes are counted. The 10,000
images of its validation part are tested on, since those of its test part have no labels. Labels are the classes'
places in alphabetical order, as torchvision's ImageFolder has them. Needs Pillow; to decode all takes half a minute.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from zipfile import ZipFile

import numpy as np

from subspace.study.data.archives import Archive, check_md5
from subspace.study.data.images import Images, image_data, smaller
from subspace.study.data.samples import Data

ARCHIVE = Archive(
    "http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de", "tiny-imagenet-200"
)
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

    Arguments and errors are those of `cifar`.
    """
    path, counts = ARCHIVE.get(data_dir, download), {"train": train, "test": test}
    if find_spec("PIL") is None:
        raise ValueError("Pillow must be installed for tiny_imagenet, got none: pip install pillow")
    if path.is_dir():
        parts = selected(path, lambda name: (path / name).read_bytes(), counts, verify)
    else:
        if verify:
            check_md5(path, ARCHIVE.md5, ARCHIVE.address)
        with ARCHIVE.reading(path):
            archive = ZipFile(path)
        with archive:
            parts = selected(path, lambda name: archive.read(f"{ARCHIVE.folder}/{name}"), counts, verify)
    return image_data(parts[0], parts[1], CLASSES, MEAN, STD, augment)


def selected(source: Path, read_file: Read, counts: dict[str, int | None], verify: bool) -> list[Images]:
    """The images asked for, decoded."""
    with ARCHIVE.reading(source):
        parts = listed(read_file)
    found = []
    for name, files in parts.items():
        labels = np.array([label for _, label in files], np.int64)
        if verify and np.bincount(labels, minlength=CLASSES).tolist() != [EACH[name]] * CLASSES:
            raise ValueError(
                f"{source} must have {EACH[name]} images of each of {CLASSES} classes to {name} on, got another number"
            )
        places = smaller(labels, counts[name], name)
        pixels = np.empty((len(places), SIZE, SIZE, 3), np.uint8)
        for row, place in enumerate(places):
            with ARCHIVE.reading(source / files[place][0]):
                pixels[row] = decoded(read_file(files[place][0]))
        found.append(Images(pixels.transpose(0, 3, 1, 2), labels[places]))
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
