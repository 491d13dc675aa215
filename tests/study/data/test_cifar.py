"""Laws of CIFAR's archives: read as they are, checked, and named where they are damaged or not there."""

import hashlib
import io
import os
import pickle
import shutil
import tarfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from subspace import Key
from subspace.study import data
from subspace.study.data import archives, cifar10, cifar100, tiny_imagenet
from subspace.study.data.cifar import HUNDRED, TEN, parsed
from subspace.study.entries.entry import Choice

EACH = 20  # images in each file of the small archives
KINDS = {cifar10: TEN, cifar100: HUNDRED}


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


def files(kind):
    """The files of a small archive."""
    found = {"batches.meta": pickled({b"label_names": [b"cat"]})}
    for name, (pixels, labels) in contents(kind).items():
        rest = {b"batch_label": b"a batch", b"filenames": [b"a.png"] * EACH, b"coarse_labels": [0] * EACH}
        found[name] = pickled({b"data": pixels, kind.label.encode(): labels.tolist(), **rest})
    return found


def write(folder, archive, content, packed):
    """The files as a .tar.gz in the folder or unpacked in it: its path."""
    inside = folder / archive.folder
    inside.mkdir(parents=True)
    for name, text in content.items():
        (inside / name).write_bytes(text)
    if not packed:
        return inside
    with tarfile.open(folder / archive.name, "w:gz") as tar:
        tar.add(inside, archive.folder)
    shutil.rmtree(inside)
    return folder / archive.name


@pytest.mark.parametrize("load", KINDS)
@pytest.mark.parametrize("packed", [True, False])
def test_it_is_read_packed_or_not(load, packed, tmp_path, monkeypatch):
    kind = KINDS[load]
    path = write(tmp_path, kind.archive, files(kind), packed)
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


@given(protocol=st.integers(2, pickle.HIGHEST_PROTOCOL), labels=st.lists(st.integers(0, 9), min_size=1, max_size=30))
def test_a_batch_that_was_pickled_anew_is_read_too(protocol, labels, tmp_path_factory):
    pixels = np.resize(np.arange(251, dtype=np.uint8), (len(labels), 3072))
    text = pickle.dumps({"batch_label": "a", "labels": labels, "data": pixels, "filenames": ["b"] * 3}, protocol)
    images = parsed(TEN, tmp_path_factory.getbasetemp() / "batch", text)
    assert images.labels.tolist() == labels
    assert (images.pixels.reshape(-1, 3072) == pixels).all()


def test_fewer_images_and_augmentation_are_options(tmp_path):
    write(tmp_path, TEN.archive, files(TEN), packed=True)
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
    path = write(tmp_path, TEN.archive, files(TEN), packed)
    named = path if packed else path / "data_batch_1"
    with pytest.raises(ValueError, match=rf"^{named} must have the MD5 .* at https://www.cs.toronto.*tar.gz, got"):
        cifar10(str(tmp_path))
    archives.check_md5(named, hashlib.md5(named.read_bytes()).hexdigest(), "")


class Harm:
    """A pickle of this calls something when it is unpickled."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


PIXELS, LABELS = np.zeros((2, 3072), np.uint8), [0, 1]
POINTERS = Harm(np.ndarray, (1,), "O", b"A" * 8)  # would make a pointer of these bytes
DAMAGED = {
    "truncated": files(TEN)["test_batch"][:-5000],
    "empty": b"",
    "text": b"<html>404</html>",
    "another value": pickled([1, 2]),
    "no labels": pickled({b"data": PIXELS}),
    "too few labels": pickled({b"data": PIXELS, b"labels": [0]}),
    "floats": pickled({b"data": PIXELS.astype(float), b"labels": LABELS}),
    "a label out of range": pickled({b"data": PIXELS, b"labels": [0, 10]}),
    "a label below 0": pickled({b"data": PIXELS, b"labels": [0, -1]}),
    "labels that are no integers": pickled({b"data": PIXELS, b"labels": [0.5, 1.0]}),
    "pointers": pickle.dumps({"data": POINTERS, "labels": LABELS}, protocol=2),
    "a negative offset": pickle.dumps({"data": Harm(np.ndarray, (1,), "u1", b"A" * 8, -64), "labels": LABELS}),
    "a call": pickle.dumps({"data": Harm(os.mkdir, "ran"), "labels": LABELS}, protocol=2),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_batch_is_named_and_runs_nothing(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, TEN.archive, {**files(TEN), "test_batch": DAMAGED[kind]}, packed=False)
    with pytest.raises(ValueError, match=rf"^{path / 'test_batch'} must "):
        cifar10(str(tmp_path), verify=False)
    assert not (tmp_path / "ran").exists()


def test_a_damaged_archive_is_named(tmp_path):
    path = write(tmp_path, TEN.archive, files(TEN), packed=True)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"<html>404</html>", whole[:3000] + b"\0" * 3000 + whole[6000:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"^{path}.* must "):
            cifar10(str(tmp_path), verify=False)
    path.unlink()
    less = files(TEN)
    del less["data_batch_4"]
    write(tmp_path, TEN.archive, less, packed=True)
    with pytest.raises(ValueError, match=rf"^{path} must have the file data_batch_4, got an archive without it$"):
        cifar10(str(tmp_path), verify=False)
    folder = write(tmp_path, TEN.archive, less, packed=False)
    with pytest.raises(ValueError, match=rf"^{folder} must be as .*tar.gz has it, got an error .*data_batch_4"):
        cifar10(str(tmp_path), verify=False)


@pytest.mark.parametrize("load", [cifar10, cifar100, tiny_imagenet])
def test_what_is_not_there_is_told_how_to_get(load, tmp_path):
    with pytest.raises(ValueError, match=rf"^data_dir must be .*got {tmp_path} without: save http.*download = true$"):
        load(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_an_archive_is_downloaded_whole_or_not_at_all(tmp_path, monkeypatch):
    published = write(tmp_path / "published", TEN.archive, files(TEN), packed=True)
    folder = tmp_path / "new" / "folder"
    monkeypatch.setattr("urllib.request.urlopen", lambda address: published.open("rb"))
    with pytest.raises(ValueError, match=r"cifar-10-python.tar.gz must have the MD5 c58f30"):
        cifar10(str(folder), download=True)
    assert list(folder.iterdir()) == []
    archive = TEN.archive._replace(md5=hashlib.md5(published.read_bytes()).hexdigest())
    archive.download(folder)
    assert [path.name for path in folder.iterdir()] == [published.name]
    assert len(cifar10(str(folder), verify=False, download=True).train) == 5 * EACH

    def failing(address):
        raise OSError("nobody answers")

    monkeypatch.setattr("urllib.request.urlopen", failing)
    cifar10(str(folder), verify=False, download=True)  # nothing is fetched again
    with pytest.raises(ValueError, match="must be downloadable to .*, got nobody answers"):
        cifar10(str(tmp_path / "other"), download=True)
