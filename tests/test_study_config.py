"""Laws of a run's configuration: it is all of it, it survives JSON, and its hash sees every field."""

import dataclasses
import itertools
import json
import warnings

import pytest
import torch

import subspace
from subspace import Key
from subspace.study import data, models
from subspace.study.config import Run, Study, Training
from subspace.study.methods import METHODS, method

RUN = Run("dctps", 0.01, 0)
OTHER = {
    "method": "freezenet",
    "density": 0.02,
    "seed": 1,
    "model": "other",
    "data": "other",
    "training": Training(epochs=7),
    "version": "other",
}
OTHER_TRAINING = {"epochs": 9, "batch": 9, "learning_rate": 9.0}


def test_the_hash_changes_with_every_field():
    assert OTHER.keys() == {field.name for field in dataclasses.fields(Run)}
    assert OTHER_TRAINING.keys() == {field.name for field in dataclasses.fields(Training)}
    changed = [dataclasses.replace(RUN, **{name: value}) for name, value in OTHER.items()]
    changed += [
        dataclasses.replace(RUN, training=dataclasses.replace(RUN.training, **{name: value}))
        for name, value in OTHER_TRAINING.items()
    ]
    assert len({run.hash for run in [RUN, *changed]}) == 1 + len(changed)


def test_the_hash_is_of_values_and_not_of_how_they_were_written():
    assert Run("dctps", 1, 0).hash == Run("dctps", 1.0, 0).hash
    assert (
        Run("dctps", 0.1, 0, training=Training(learning_rate=1)).hash
        == Run("dctps", 0.1, 0, training=Training(learning_rate=1.0)).hash
    )
    assert len(RUN.hash) == 16
    assert set(RUN.hash) <= set("0123456789abcdef")


@pytest.mark.parametrize(
    "run", [RUN, Run("ordinary", None, 3), Run("random_subspace", 1e-3, 7, training=Training(2, 8, 0.5))]
)
def test_a_run_survives_json(run):
    assert Run.parse(json.loads(json.dumps(run.configuration()))) == run


def test_the_version_is_part_of_the_configuration():
    assert RUN.configuration()["version"] == subspace.__version__


def test_the_default_study_is_six_methods_three_densities_three_seeds_and_dense_once_per_seed():
    runs = Study().runs()
    assert len(runs) == len(set(runs)) == 3 + 5 * 3 * 3
    assert [(run.density, run.seed) for run in runs if run.method == "ordinary"] == [(None, 0), (None, 1), (None, 2)]
    assert {(run.method, run.density, run.seed) for run in runs if run.method != "ordinary"} == {
        (name, density, seed)
        for name in METHODS
        if name != "ordinary"
        for density in (0.1, 0.01, 0.001)
        for seed in range(3)
    }


def test_a_grid_that_repeats_itself_has_each_run_once():
    assert len(Study(("dctps", "dctps"), (0.1, 0.1), seeds=2).runs()) == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Run("dctpss", 0.1, 0), r"method must be one of ordinary, .*, got 'dctpss'; did you mean 'dctps'\?"),
        (lambda: Run("zzz", 0.1, 0), r"method must be one of .*, got 'zzz'$"),
        (lambda: Run("dctps", 0.0, 0), r"density must be in \(0, 1\], got 0.0"),
        (lambda: Run("dctps", 1.5, 0), r"density must be in \(0, 1\], got 1.5"),
        (lambda: Run("dctps", float("nan"), 0), r"density must be in \(0, 1\], got nan"),
        (lambda: Run("dctps", None, 0), r"density must be in \(0, 1\], got None"),
        (lambda: Run("ordinary", 0.1, 0), r"density must be None for ordinary, got 0.1"),
        (lambda: Run("dctps", 0.1, -1), r"seed must be at least 0, got -1"),
        (lambda: Training(epochs=0), r"epochs must be at least 1, got 0"),
        (lambda: Training(batch=0), r"batch must be at least 1, got 0"),
        (lambda: Training(learning_rate=float("inf")), r"learning_rate must be positive and finite, got inf"),
        (lambda: Study(seeds=0), r"seeds must be at least 1, got 0"),
        (lambda: Study(methods=()), r"methods must be some of ordinary, .*, got none"),
        (lambda: Study(densities=()), r"densities must be some numbers in \(0, 1\], got none"),
    ],
)
def test_bad_values_are_refused_in_one_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_every_method_trains_exactly_the_budget_of_the_same_network():
    sizes = {}
    for name in METHODS:
        model = models.lenet5(Key(0))
        with warnings.catch_warnings():  # a uniform budget of 61 leaves conv1 none, and says so
            warnings.simplefilter("ignore")
            method(name).apply(model, 0.001, 0)
        sizes[name] = subspace.summary(model)
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == sizes[name].dim, name
    assert {size.weights for size in sizes.values()} == {61_210}
    assert {name: size.dim - size.alpha for name, size in sizes.items()} == {
        name: 61_210 if name == "ordinary" else 61 for name in METHODS
    }


def test_the_split_is_stratified_disjoint_complete_and_the_same_every_time():
    labels = torch.arange(5).repeat_interleave(20)[torch.from_numpy(Key(3).permutation(100))].numpy()
    train, test = data.stratified(labels, 0.2, Key(0))
    again = data.stratified(labels, 0.2, Key(0))
    assert torch.equal(train, again[0])
    assert torch.equal(test, again[1])
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(100))
    assert torch.bincount(torch.from_numpy(labels)[test]).tolist() == [4] * 5
    assert not torch.equal(test, data.stratified(labels, 0.2, Key(1))[1])


def test_the_digits_are_4000_and_1000_balanced_normalised_and_look_like_digits():
    digits = data.mnist5k()
    assert digits.train_images.shape == (4000, 1, 28, 28)
    assert digits.test_images.shape == (1000, 1, 28, 28)
    assert torch.bincount(digits.train_labels).tolist() == [400] * 10
    assert torch.bincount(digits.test_labels).tolist() == [100] * 10
    assert abs(digits.train_images.mean()) < 1e-4
    assert abs(digits.train_images.std(correction=0) - 1) < 1e-4
    train, test = (images.flatten(1) for images in (digits.train_images, digits.test_images))
    means = torch.stack([train[digits.train_labels == digit].mean(0) for digit in range(10)])
    assert (means.mean(1).argmin(), means.mean(1).argmax()) == (1, 0)  # a one takes the least ink, a zero the most
    nearest = torch.cdist(test, means).argmin(1)
    assert (nearest == digits.test_labels).double().mean() > 0.7  # images and labels belong together


def test_lenet5_has_its_shapes_and_its_initialisation_comes_from_the_key():
    model = models.lenet5(Key(0))
    assert {name: tuple(weight.shape) for name, weight in model.named_parameters()} == {
        "conv1.weight": (6, 1, 5, 5),
        "conv2.weight": (16, 6, 5, 5),
        "conv3.weight": (120, 16, 5, 5),
        "fc1.weight": (82, 120),
        "fc2.weight": (10, 82),
    }
    assert model(torch.zeros(3, 1, 28, 28)).shape == (3, 10)
    for weight in (model.conv2.weight, model.conv3.weight, model.fc1.weight):
        assert abs(weight.std() * (weight[0].numel() / 2) ** 0.5 - 1) < 0.1  # Kaiming, fan-in
    drawn = [weight.flatten()[:150] / weight[0].numel() ** -0.5 for weight in model.parameters()]
    assert not any(torch.allclose(one, two) for one, two in itertools.combinations(drawn, 2))
    same, other = models.lenet5(Key(0)), models.lenet5(Key(1))
    assert torch.equal(model.conv3.weight, same.conv3.weight)
    assert not torch.equal(model.conv3.weight, other.conv3.weight)
