"""Laws of the reader of MNIST and Fashion-MNIST, on small files of the same form."""

import gzip
import hashlib
import struct
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from subspace import Key
from subspace.study import data
from subspace.study.data.idx import FASHION, MNIST, parse_idx, read_published
from subspace.study.entries.entry import Choice

COUNTS = {"train": 40, "t10k": 20}


def packed(array):
    """An array of bytes as IDX has it: two zeros, 8 for bytes, how many dimensions, sizes of 4 bytes, the bytes."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def arrays_of(part):
    """Images and labels of a part, every class in equal number."""
    count = COUNTS[part]
    pixels = Key(0).fold(part).integers(count * 784, 256).astype(np.uint8).reshape(count, 28, 28)
    return pixels, (np.arange(count) % 10).astype(np.uint8)


def contents():
    """The four files, unpacked, by name."""
    found = {}
    for part in COUNTS:
        pixels, labels = arrays_of(part)
        found |= {f"{part}-images-idx3-ubyte": packed(pixels), f"{part}-labels-idx1-ubyte": packed(labels)}
    return found


SMALL = FASHION._replace(md5={name: hashlib.md5(text).hexdigest() for name, text in contents().items()})
load = partial(read_published, SMALL)


def write(folder, files, zipped=True):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(text) if zipped else text)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("where", ["fashion-mnist", "FashionMNIST/raw"])
def test_images_and_labels_are_those_of_the_files(zipped, where, tmp_path):
    write(tmp_path / where, contents(), zipped)
    train, test, classes = load(str(tmp_path))
    assert classes == 10
    for samples, part in ((train, "train"), (test, "t10k")):
        pixels, labels = arrays_of(part)
        inputs, found = samples.batch(torch.arange(len(labels)))
        assert found.tolist() == labels.tolist()
        assert np.allclose(inputs.numpy()[:, 0], (pixels / 255 - SMALL.mean) / SMALL.std, atol=1e-6)
        assert inputs.shape == (len(labels), 1, 28, 28)


def test_the_folder_itself_may_be_named_and_fewer_images_are_of_all_classes(tmp_path):
    write(tmp_path / "fashion-mnist", contents())
    train, test, _ = load(str(tmp_path / "fashion-mnist"), train=10, test=20)
    assert train.labels.bincount().tolist() == [1] * 10
    assert test.labels.bincount().tolist() == [2] * 10


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_missing_files_are_told_with_where_to_get_them(name, tmp_path, monkeypatch):
    monkeypatch.setenv("SUBSPACE_DATA", str(tmp_path))
    known = {"mnist": MNIST, "fashion_mnist": FASHION}[name]
    for call in (data.require, data.load):
        with pytest.raises(
            ValueError, match=rf"{known.folders[0]}/train-images-idx3-ubyte.gz .* got {tmp_path} without"
        ):
            call(Choice(name))
    write(tmp_path / known.folders[0], {"train-images-idx3-ubyte": b""})
    with pytest.raises(ValueError, match=f"save the four of {known.address} there"):
        data.require(Choice(name))


def damaged(name, change, tmp_path):
    """What is said of a file whose content, as it lies there, is changed."""
    write(tmp_path / "fashion-mnist", contents())
    path = tmp_path / "fashion-mnist" / f"{name}.gz"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"^{path} must ") as told:
        load(str(tmp_path), verify="MD5" in name)
    return str(told.value)


@pytest.mark.parametrize("name", contents())
def test_a_damaged_file_is_named_and_nothing_is_read_from_it(name, tmp_path):
    assert "got an error in reading it" in damaged(name, lambda packed: packed[:-20], tmp_path)
    assert "got an error in reading it" in damaged(name, lambda packed: b"<html>", tmp_path)
    assert "must be IDX of bytes in" in damaged(name, lambda packed: gzip.compress(b"abc"), tmp_path)

    def shorter(packed):
        return gzip.compress(gzip.decompress(packed)[:-1])

    assert "bytes after its head, got" in damaged(name, shorter, tmp_path)


def test_a_file_of_another_content_has_another_checksum(tmp_path):
    files = contents()
    files["t10k-labels-idx1-ubyte"] = packed(arrays_of("t10k")[1][::-1])
    write(tmp_path / "fashion-mnist", files)
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte.gz must have the MD5 \w+ unpacked, as at https://"):
        load(str(tmp_path))
    assert load(str(tmp_path), verify=False).test.labels.tolist() == arrays_of("t10k")[1][::-1].tolist()


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("train-labels-idx1-ubyte", np.full(40, 10, np.uint8)),
        ("train-labels-idx1-ubyte", np.zeros(39, np.uint8)),
        ("t10k-images-idx3-ubyte", np.zeros((20, 28, 27), np.uint8)),
    ],
)
def test_images_and_labels_must_fit(name, array, tmp_path):
    write(tmp_path / "fashion-mnist", contents() | {name: packed(array)})
    with pytest.raises(ValueError, match=r"must have images of 28 x 28 with a label in range\(10\) each to"):
        load(str(tmp_path), verify=False)


@given(arrays.arrays(np.uint8, arrays.array_shapes(min_dims=1, max_dims=3, max_side=5)), st.integers(1, 3))
def test_idx_is_read_back_and_no_other_number_of_dimensions_is_taken(array, dimensions):
    if dimensions == array.ndim:
        assert np.array_equal(parse_idx(packed(array), array.ndim, "here"), array)
    else:
        with pytest.raises(ValueError, match=f"here must be IDX of bytes in {dimensions} dimensions"):
            parse_idx(packed(array), dimensions, "here")
