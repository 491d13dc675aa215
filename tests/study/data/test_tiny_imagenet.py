"""Laws of the Tiny ImageNet reader."""

import io
import zipfile

import numpy as np
import pytest
import torch

from subspace import Key
from subspace.study.data import tiny_imagenet
from subspace.study.data.tiny_imagenet import ARCHIVE, MEAN, STD

Image = pytest.importorskip("PIL.Image")
WNIDS = ["n02124075", "n01443537", "n04067472"]  # as in wnids.txt, not in alphabetical order


def jpeg(name, size=64, mode="RGB"):
    """A smooth picture of its own for every name, as a JPEG file."""
    corners = Key(0).fold(name).integers(12, 256).astype(np.uint8).reshape(2, 2, 3)
    file = io.BytesIO()
    Image.fromarray(corners).resize((size, size), Image.Resampling.BILINEAR).convert(mode).save(file, "JPEG")
    return file.getvalue()


def files():
    """A small archive: of every class 4 images to train on and 2 of the validation part, one grey."""
    found = {"wnids.txt": "\n".join(WNIDS).encode(), "words.txt": b"n01443537\tgoldfish"}
    annotations = []
    for number, wnid in enumerate(WNIDS):
        names = [f"{wnid}_{i}.JPEG" for i in range(4)]
        found[f"train/{wnid}/{wnid}_boxes.txt"] = "\n".join(f"{name}\t0\t0\t63\t63" for name in names).encode()
        found |= {f"train/{wnid}/images/{name}": jpeg(name, mode="L" if "_3" in name else "RGB") for name in names}
        for i in (number, number + 3):
            annotations.append(f"val_{i}.JPEG\t{wnid}\t0\t32\t44\t62")
            found[f"val/images/val_{i}.JPEG"] = jpeg(f"val_{i}.JPEG")
    found["val/val_annotations.txt"] = "\n".join(annotations).encode()
    found["test/images/test_0.JPEG"] = jpeg("test")
    return found


def write(folder, content, packed=True):
    """The files as the published zip file or its folder: its path."""
    path = folder / (ARCHIVE.name if packed else ARCHIVE.folder)
    if packed:
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in content.items():
                archive.writestr(f"{ARCHIVE.folder}/{name}", text)
        return path
    for name, text in content.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(text)
    return path


@pytest.mark.parametrize("packed", [True, False])
def test_images_and_labels_are_those_of_the_archive(packed, tmp_path):
    write(tmp_path, files(), packed)
    train, test, classes = tiny_imagenet(str(tmp_path), verify=False, augment=False)
    assert (len(train), len(test), classes) == (12, 6, 200)
    names = [f"{wnid}_{i}.JPEG" for wnid in sorted(WNIDS) for i in range(4)]
    assert train.labels.tolist() == [label for label in range(3) for _ in range(4)]
    assert test.labels.tolist() == [sorted(WNIDS).index(wnid) for wnid in WNIDS for _ in range(2)]
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (MEAN, STD))
    for samples, all_names in ((train, names), (test, [f"val_{i}.JPEG" for i in (0, 3, 1, 4, 2, 5)])):
        inputs, _ = samples.batch(torch.arange(len(samples)))
        assert inputs.shape == (len(samples), 3, 64, 64)
        for image, name in zip(inputs, all_names, strict=True):
            picture = Image.open(io.BytesIO(jpeg(name, mode="L" if "_3.J" in name and "val" not in name else "RGB")))
            pixels = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
            assert np.allclose(image, (pixels / 255 - mean) / std, atol=1e-6), name


def test_fewer_images_are_of_all_classes_and_only_they_are_decoded(tmp_path):
    content = files()
    write(tmp_path, content)
    few = tiny_imagenet(str(tmp_path), verify=False, train=3, test=3)
    assert (few.train.labels.tolist(), few.test.labels.bincount().tolist()) == ([0, 1, 2], [1, 1, 1])
    kept = few.train.inputs
    everything = tiny_imagenet(str(tmp_path), verify=False).train.inputs
    places = [next(i for i, image in enumerate(everything) if torch.equal(image, one)) for one in kept]
    names = [f"train/{wnid}/images/{wnid}_{i}.JPEG" for wnid in sorted(WNIDS) for i in range(4)]
    for place, name in enumerate(names):
        if place not in places:
            content[name] = b"damaged"
    write(tmp_path, content)
    assert torch.equal(tiny_imagenet(str(tmp_path), verify=False, train=3, test=3).train.inputs, kept)


IMAGE = f"train/{WNIDS[1]}/images/{WNIDS[1]}_2.JPEG"
DAMAGE = {
    IMAGE: [files()[IMAGE][:300], b"", b"no picture", jpeg("small", size=32)],
    "wnids.txt": [None, b"\xff\xfe", b"n00000000"],
    "val/val_annotations.txt": [None, b"val_0.JPEG", b"val_0.JPEG\tn00000000\t0\t0\t0\t0"],
    f"train/{WNIDS[0]}/{WNIDS[0]}_boxes.txt": [None, b"another.JPEG\t0\t0\t0\t0"],
}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in DAMAGE.items() for text in texts])
def test_a_damaged_or_foreign_file_is_named(name, text, packed, tmp_path):
    content = {**files(), name: text}
    path = write(tmp_path, {name: text for name, text in content.items() if text is not None}, packed)
    with pytest.raises(ValueError, match=rf"^{path}.* must ") as error:
        tiny_imagenet(str(tmp_path), verify=False)
    assert "\n" not in str(error.value)


def test_a_damaged_archive_is_named(tmp_path):
    path = write(tmp_path, files())
    whole = path.read_bytes()
    with pytest.raises(ValueError, match=rf"^{path} must have the MD5 90528d7ca1a48142e341f4ef8d21d0de"):
        tiny_imagenet(str(tmp_path))
    for damaged in (whole[: len(whole) // 2], b"", whole[:5000] + b"\0" * 8000 + whole[13000:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"^{path}.* must "):
            tiny_imagenet(str(tmp_path), verify=False)
    path.unlink()
    path = write(tmp_path, files(), packed=False)
    with pytest.raises(ValueError, match=rf"^{path} must have 500 images of each of 200 classes to train on, got"):
        tiny_imagenet(str(tmp_path))
