"""Laws of samples: what is asked for, in that order, random by the key alone."""

import itertools

import numpy as np
import pytest
import torch
from torch.utils.data import Subset, TensorDataset

from subspace import Key
from subspace.study.data.images import Normalised, crop_and_flip
from subspace.study.data.samples import Items, Tensors

INPUTS, TARGETS = torch.arange(24.0).reshape(12, 2), torch.arange(12) % 3


class Listed(TensorDataset):
    """A Dataset that has a list of its labels; looking at an item for its label would fail."""

    def __init__(self, name):
        super().__init__(INPUTS, TARGETS)
        setattr(self, name, TARGETS.tolist())
        self.looked = False

    def __getitem__(self, place):
        self.looked = True
        return super().__getitem__(place)


SAMPLES = {
    "tensors": lambda: Tensors(INPUTS, TARGETS),
    "augmented": lambda: Tensors(INPUTS, TARGETS, augment=lambda x, words: x + (words % 100)[:, None] / 100),
    "items": lambda: Items(TensorDataset(INPUTS, TARGETS)),
    "targets": lambda: Items(Listed("targets")),
    "labels": lambda: Items(Listed("labels")),
    "of a subset": lambda: Items(Subset(Listed("targets"), range(12))),
    "a subset": lambda: SAMPLES["items"]().subset(torch.arange(12)),
}


@pytest.mark.parametrize("kind", SAMPLES)
def test_batches_follow_the_order_and_are_a_function_of_the_key(kind):
    samples, order = SAMPLES[kind](), [torch.tensor([3, 1, 11]), torch.tensor([0]), torch.tensor([5, 5])]
    assert len(samples) == 12
    assert torch.equal(samples.labels, TARGETS)
    assert samples.labels.dtype == torch.int64
    state = torch.get_rng_state()
    one, again, other = (list(samples.batches(order, key)) for key in (Key(0), Key(0), Key(1)))
    assert torch.equal(torch.get_rng_state(), state)
    for places, (inputs, labels), (same, _) in zip(order, one, again, strict=True):
        assert torch.equal(labels, TARGETS[places])
        assert torch.equal(inputs.floor(), INPUTS[places])
        assert torch.equal(inputs, same)
        assert torch.equal(samples.batch(places)[0], INPUTS[places])
    assert (kind == "augmented") == any(not torch.equal(a, b) for (a, _), (b, _) in zip(one, other, strict=True))
    part = samples.subset(torch.tensor([7, 2]))
    assert torch.equal(part.batch(torch.tensor([1, 0]))[0], INPUTS[[2, 7]])
    assert torch.equal(part.labels, TARGETS[[7, 2]])


def test_an_epoch_in_parts_has_the_same_augmentation_as_a_whole_one():
    samples = SAMPLES["augmented"]()
    whole = torch.cat([inputs for inputs, _ in samples.batches([torch.arange(12)], Key(0))])
    parts = torch.cat([inputs for inputs, _ in samples.batches(torch.arange(12).split(5), Key(0))])
    assert torch.equal(whole, parts)
    assert len({float(noise) for noise in whole[:, 0] % 1}) > 6


def test_labels_that_a_dataset_lists_are_not_looked_for_nor_those_of_a_subset_again():
    samples = Items(Listed("targets"))
    assert samples.subset(torch.tensor([3])).labels.tolist() == [0]
    assert not samples.dataset.looked
    dataset = Listed("other")
    samples = Items(dataset)
    dataset.looked = False
    samples.subset(torch.tensor([3]))
    assert not dataset.looked


def test_random_transforms_of_a_dataset_draw_from_the_global_generator():
    class Noisy(TensorDataset):
        def __getitem__(self, place):
            return INPUTS[place] + torch.rand(2), int(TARGETS[place])

    samples = Items(Noisy(INPUTS, TARGETS))
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(samples.batch(torch.arange(12))[0])
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_images_are_shifted_by_at_most_four_pixels_and_mirrored_or_not_all_alike():
    image = torch.arange(1, 3 * 6 * 5 + 1, dtype=torch.uint8).reshape(1, 3, 6, 5)
    words = torch.from_numpy((Key(0).bits(8_100) >> 1).astype("int64"))
    cut = crop_and_flip(image.expand(len(words), -1, -1, -1), words)
    assert cut.shape == (len(words), 3, 6, 5)
    assert cut.dtype == torch.uint8
    assert cut.is_contiguous(memory_format=torch.channels_last)
    frame = np.zeros((3, 14, 13), np.uint8)
    frame[:, 4:10, 4:9] = image[0]
    possible = {}
    for down, right, mirrored in itertools.product(range(9), range(9), (False, True)):
        window = frame[:, down : down + 6, right : right + 5]
        possible[(window[:, :, ::-1] if mirrored else window).tobytes()] = 0
    assert len(possible) > 150  # at the far corners little is left to see
    for picture in cut.contiguous().numpy():
        possible[picture.tobytes()] += 1
    assert min(possible.values()) > 20  # of 50 expected
    prepared = Normalised((0.1, 0.2, 0.3), (1.0, 2.0, 4.0))(image)
    assert prepared[0, 1, 0, 0].item() == pytest.approx((31 / 255 - 0.2) / 2)
    assert prepared[0, 2, 5, 4].item() == pytest.approx((90 / 255 - 0.3) / 4)
