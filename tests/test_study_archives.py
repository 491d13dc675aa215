"""Laws of published archives: read as they are, checked, and named where they are damaged or not there."""

import hashlib
import io
import os
import pickle
import shutil
import sys
import tarfile
from types import ModuleType

import numpy as np
import pytest
import torch

from subspace import Key
from subspace.study import data
from subspace.study.data import cifar10, cifar100, tiny_imagenet
from subspace.study.data.archives import check_md5
from subspace.study.data.cifar import HUNDRED, TEN, cifar
from subspace.study.entries.entry import Choice

EACH = 20  # images in each file of the small archives


class Python2(pickle._Pickler):
    """Pickles as Python 2 with an old numpy did, which the published files are of: bytes are its strings."""

    def save_bytes(self, text):
        self.write(pickle.BINSTRING + len(text).to_bytes(4, "little") + text)
        self.memoize(text)

    dispatch = pickle._Pickler.dispatch | {bytes: save_bytes}


def pickled(value):
    file = io.BytesIO()
    Python2(file, protocol=2).dump(value)
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def contents(kind):
    """Random images and labels for every file of an archive of that kind, by name."""
    found = {}
    for name in kind.train | kind.test:
        key = Key(0).fold(name)
        pixels = key.integers(EACH * 3072, 256).astype(np.uint8).reshape(EACH, 3072)
        found[name] = pixels, key.fold("labels").permutation(EACH) % 10
    return found


def python_files(kind):
    """The files of the Python version."""
    files = {"batches.meta": pickled({b"label_names": [b"cat"]})}
    for name, (pixels, labels) in contents(kind).items():
        rest = {b"batch_label": b"a batch", b"filenames": [b"a.png"] * EACH, b"coarse_labels": [0] * EACH}
        files[name] = pickled({b"data": pixels, kind.label.encode(): labels.tolist(), **rest})
    return files


def binary_files(kind):
    """Those of the binary version; the coarse labels of CIFAR-100 are all 7."""
    files = {"batches.meta.txt": b"cat"}
    for name, (pixels, labels) in contents(kind).items():
        heads = [np.full((EACH, 1), 7), labels[:, None]][-kind.label_bytes :]
        files[f"{name}.bin"] = np.hstack([*heads, pixels]).astype(np.uint8).tobytes()
    return files


def write(folder, archive, files, packed):
    """The files as a .tar.gz in the folder or unpacked in it: its path."""
    inside = folder / archive.folder
    inside.mkdir(parents=True)
    for name, text in files.items():
        (inside / name).write_bytes(text)
    if not packed:
        return inside
    with tarfile.open(folder / archive.name, "w:gz") as tar:
        tar.add(inside, archive.folder)
    shutil.rmtree(inside)
    return folder / archive.name


KINDS = {cifar10: TEN, cifar100: HUNDRED}


@pytest.mark.parametrize("load", KINDS)
@pytest.mark.parametrize("version", ["python", "binary"])
@pytest.mark.parametrize("packed", [True, False])
def test_cifar_is_read_from_either_version_packed_or_not(load, version, packed, tmp_path, monkeypatch):
    kind = KINDS[load]
    files = python_files(kind) if version == "python" else binary_files(kind)
    path = write(tmp_path, getattr(kind, version), files, packed)
    monkeypatch.setenv("SUBSPACE_DATA", str(tmp_path if packed else path))
    found = load(verify=False, augment=False)
    assert found.num_classes == kind.classes
    for samples, names in ((found.train, kind.train), (found.test, kind.test)):
        pixels = np.concatenate([contents(kind)[name][0] for name in names]).reshape(-1, 3, 32, 32)
        assert samples.labels.tolist() == [label for name in names for label in contents(kind)[name][1]]
        inputs, _ = samples.batch(torch.arange(len(samples)))
        mean, std = (np.array(values).reshape(3, 1, 1) for values in (kind.mean, kind.std))
        assert np.allclose(inputs, (pixels / 255 - mean) / std, atol=1e-6)
        assert inputs.dtype == torch.float32
        assert inputs.is_contiguous(memory_format=torch.channels_last)


def test_fewer_images_and_augmentation_are_options(tmp_path):
    write(tmp_path, TEN.python, python_files(TEN), packed=True)
    options = {"data_dir": str(tmp_path), "verify": False, "train": 30, "test": 10}
    few = data.load(Choice("cifar10", options))
    assert (len(few.train), len(few.test)) == (30, 10)
    assert torch.bincount(few.train.labels).tolist() == [3] * 10
    plain = data.load(Choice("cifar10", {**options, "augment": False}))
    places = torch.arange(30)
    (augmented, labels), (same, _) = (next(of.train.batches([places], Key(0))) for of in (few, plain))
    assert not torch.equal(augmented, same)
    assert torch.equal(labels, plain.train.labels)
    assert torch.equal(same, few.train.batch(places)[0])
    assert few.test.augment is None
    for count in (0, 101, 2.0):
        with pytest.raises(ValueError, match=r"^train must be an integer in \[1, 100\], got"):
            cifar10(str(tmp_path), verify=False, train=count)
    with pytest.raises(ValueError, match="^augment must be true or false, got 1$"):
        cifar10(str(tmp_path), verify=False, augment=1)
    data.load.cache_clear()


@pytest.mark.parametrize("packed", [True, False])
def test_other_files_than_those_published_are_refused_by_their_md5(packed, tmp_path):
    path = write(tmp_path, TEN.python, python_files(TEN), packed)
    named = path if packed else path / "data_batch_1"
    with pytest.raises(ValueError, match=rf"^{named} must have the MD5 .* at https://www.cs.toronto.*tar.gz, got"):
        cifar10(str(tmp_path))
    md5 = hashlib.md5(named.read_bytes()).hexdigest()
    check_md5(named, md5, "")
    if packed:  # the right file, but not the right number of images
        with pytest.raises(ValueError, match=r"must have 5000 images of every class to train on, got another number$"):
            cifar(TEN._replace(python=TEN.python._replace(md5=md5)), tmp_path, True, (None, None), True, False)


class Ran:
    """A pickle of this makes a folder when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_something_is_refused(tmp_path):
    files = python_files(TEN)
    files["data_batch_3"] = pickle.dumps({"data": Ran(tmp_path / "ran"), "labels": [0]}, protocol=2)
    path = write(tmp_path, TEN.python, files, packed=False)
    with pytest.raises(
        ValueError, match=rf"^{path / 'data_batch_3'} must be a batch of .*mkdir must not be in a pickle"
    ):
        cifar10(str(tmp_path), verify=False)
    assert not (tmp_path / "ran").exists()


PIXELS, LABELS = np.zeros((2, 3072), np.uint8), [0, 1]
DAMAGED = {
    "truncated": python_files(TEN)["test_batch"][:-5000],
    "empty": b"",
    "text": b"<html>404</html>",
    "another value": pickled([1, 2]),
    "no labels": pickled({b"data": PIXELS}),
    "too few labels": pickled({b"data": PIXELS, b"labels": [0]}),
    "floats": pickled({b"data": PIXELS.astype(float), b"labels": LABELS}),
    "a list of pixels": pickled({b"data": PIXELS.tolist(), b"labels": LABELS}),
    "a label out of range": pickled({b"data": PIXELS, b"labels": [0, 10]}),
    "labels that are no integers": pickled({b"data": PIXELS, b"labels": [0.5, 1.0]}),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_batch_is_named(kind, tmp_path):
    path = write(tmp_path, TEN.python, {**python_files(TEN), "test_batch": DAMAGED[kind]}, packed=False)
    with pytest.raises(ValueError, match=rf"^{path / 'test_batch'} must "):
        cifar10(str(tmp_path), verify=False)


def test_a_damaged_binary_file_is_named(tmp_path):
    for name, text in (("truncated", b"\0" * 3072), ("label", b"\xff" * 3073), ("empty", b"")):
        path = write(tmp_path / name, TEN.binary, {**binary_files(TEN), "data_batch_2.bin": text}, packed=False)
        with pytest.raises(ValueError, match=rf"^{path / 'data_batch_2.bin'} must have"):
            cifar10(str(tmp_path / name), verify=False)


def test_a_damaged_archive_is_named(tmp_path):
    path = write(tmp_path, TEN.python, python_files(TEN), packed=True)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"<html>404</html>", whole[:3000] + b"\0" * 3000 + whole[6000:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"^{path} must "):
            cifar10(str(tmp_path), verify=False)
    path.unlink()
    files = python_files(TEN)
    del files["data_batch_4"]
    write(tmp_path, TEN.python, files, packed=True)
    with pytest.raises(ValueError, match=rf"^{path} must have the file {TEN.python.folder}/data_batch_4, got an arch"):
        cifar10(str(tmp_path), verify=False)
    folder = write(tmp_path, TEN.python, files, packed=False)
    with pytest.raises(ValueError, match=rf"^{folder} must have the file data_batch_4, got a folder without it$"):
        cifar10(str(tmp_path), verify=False)


def without_libraries(monkeypatch):
    for name in ("torchvision", "torchvision.datasets.utils", "datasets"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize("load", [cifar10, cifar100, tiny_imagenet])
@pytest.mark.parametrize("download", [False, True])
def test_what_is_not_there_is_told_how_to_get(load, download, tmp_path, monkeypatch):
    without_libraries(monkeypatch)
    with pytest.raises(
        ValueError, match=rf"^data_dir must be a folder with .*got {tmp_path} without: save http.*\."
    ) as e:
        load(str(tmp_path), download=download)
    assert "\n" not in str(e.value)
    assert ("set download = true" in str(e.value)) != download
    assert ("pip install torchvision or datasets" in str(e.value)) == download
    assert list(tmp_path.iterdir()) == []


def test_torchvision_downloads_the_archive_whole_or_not_at_all(tmp_path, monkeypatch):
    without_libraries(monkeypatch)
    published = write(tmp_path / "published", TEN.python, python_files(TEN), packed=True)

    def download_url(url, root, filename=None, md5=None):
        assert (url, md5) == ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", TEN.python.md5)
        shutil.copy(published, os.path.join(root, filename))
        if fails:
            raise RuntimeError("File not found or corrupted.")

    library = ModuleType("torchvision.datasets.utils")
    library.download_url = download_url
    monkeypatch.setitem(sys.modules, "torchvision.datasets.utils", library)
    for name in ("torchvision", "torchvision.datasets"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    folder = tmp_path / "new" / "folder"
    fails = True
    with pytest.raises(ValueError, match=rf"cifar-10-python.tar.gz must be downloadable to {folder}, got File not"):
        cifar10(str(folder), verify=False, download=True)
    assert list(folder.iterdir()) == []
    fails = False
    assert len(cifar10(str(folder), verify=False, download=True).train) == 5 * EACH
    assert [path.name for path in folder.iterdir()] == [published.name]
    fails = True
    cifar10(str(folder), verify=False, download=True)  # nothing is fetched again
