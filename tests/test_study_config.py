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
from subspace.study.methods import BASIC, METHODS, method
from subspace.study.setting import Setting

RUN = Run("dctps", 0.01, 0)
OTHER = {
    "method": "freezenet",
    "density": 0.02,
    "seed": 1,
    "model": "other",
    "data": "other",
    "training": Training(epochs=7),
    "options": (("delta_t", 9), ("fraction", 0.3), ("t_end", 0.75)),
    "version": "other",
}
OTHER_TRAINING = {"epochs": 9, "batch": 9, "learning_rate": 9.0}


def test_the_hash_changes_with_every_field():
    assert OTHER.keys() == {field.name for field in dataclasses.fields(Run)}
    assert OTHER_TRAINING.keys() == {field.name for field in dataclasses.fields(Training)}
    changed = [dataclasses.replace(RUN, **{name: OTHER[name]}) for name in OTHER if name != "options"]
    moving = Run("rigl", 0.01, 0)
    changed += [moving, dataclasses.replace(moving, options=OTHER["options"])]
    changed += [
        dataclasses.replace(RUN, training=dataclasses.replace(RUN.training, **{name: value}))
        for name, value in OTHER_TRAINING.items()
    ]
    assert len({run.hash for run in [RUN, *changed]}) == 1 + len(changed)


def test_a_method_without_options_is_configured_as_before_there_were_any():
    assert Run("freezenet", 0.1, 2, version="0.1.0").configuration() == {
        "method": "freezenet",
        "density": 0.1,
        "seed": 2,
        "model": "lenet5",
        "data": "mnist5k",
        "training": {"epochs": 4, "batch": 128, "learning_rate": 0.003},
        "version": "0.1.0",
    }
    assert Run("dctps", 0.01, 0, version="0.1.0").hash == "46e6f6f3d0e10ecf"
    assert Run("ordinary", None, 1, version="0.1.0").hash == "9c9f7a22b99451b8"
    assert Run("imp", 0.1, 0).configuration()["options"] == {"rounds": 9}


def test_the_hash_is_of_values_and_not_of_how_they_were_written():
    assert Run("dctps", 1, 0).hash == Run("dctps", 1.0, 0).hash
    assert (
        Run("dctps", 0.1, 0, training=Training(learning_rate=1)).hash
        == Run("dctps", 0.1, 0, training=Training(learning_rate=1.0)).hash
    )
    assert len(RUN.hash) == 16
    assert set(RUN.hash) <= set("0123456789abcdef")


@pytest.mark.parametrize(
    "run",
    [
        RUN,
        Run("ordinary", None, 3),
        Run("random_subspace", 1e-3, 7, training=Training(2, 8, 0.5)),
        Run("force", 0.1, 0),
        Run("rigl", 0.1, 0, options=OTHER["options"]),
    ],
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
        for name in BASIC
        if name != "ordinary"
        for density in (0.1, 0.01, 0.001)
        for seed in range(3)
    }


def test_a_study_of_all_methods_has_each_at_every_density():
    runs = Study(tuple(METHODS), seeds=1).runs()
    assert len(runs) == len({run.hash for run in runs}) == 1 + 3 * (len(METHODS) - 1)


def test_epochs_and_costs_include_the_rounds_of_imp():
    assert (Run("imp", 0.1, 0).epochs, Run("force", 0.1, 0).epochs, RUN.epochs) == (40, 4, 4)
    assert Run("imp", 0.1, 0).cost == 10 * RUN.cost


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
        (lambda: Run("dctps", 0.1, 0, options=(("steps", 3),)), r"options of dctps must be none, got steps"),
        (lambda: Run("force", 0.1, 0, options=()), r"options of force must be samples, steps, got none"),
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


@pytest.fixture(scope="module")
def few():
    """Thirty images without meaning, and a loop that does nothing."""
    images = torch.from_numpy(Key(0).normal(30 * 784, dtype="float32")).reshape(30, 1, 28, 28)

    def setting(name, density=0.001, seed=0):
        options = {n: 2 if n in ("steps", "rounds") else value for n, value in METHODS[name].options.items()}
        return Setting(density, seed, options, images, torch.arange(30) % 3, 4, lambda model: None)

    return setting


def test_every_method_trains_exactly_the_budget_of_the_same_network(few):
    sizes = {}
    for name in METHODS:
        model = models.lenet5(Key(0))
        with warnings.catch_warnings():  # a uniform budget of 61 leaves conv1 none, and says so
            warnings.simplefilter("ignore")
            method(name).apply(model, few(name))
        sizes[name] = subspace.summary(model)
        assert sum(p.numel() for p in set(model.parameters()) if p.requires_grad) == sizes[name].dim, name
    assert {size.weights for size in sizes.values()} == {61_210}
    assert {name: size.dim - size.alpha for name, size in sizes.items()} == {
        name: 61_210 if name == "ordinary" else 61 for name in METHODS
    }


@pytest.mark.parametrize("name", ["set", "rigl", "dctps_set", "dctps_rigl"])
def test_movers_follow_the_options(name, few):
    model = method(name).apply(models.lenet5(Key(0)), few(name, density=0.1))
    mover = method(name).mover(model, torch.optim.Adam(model.parameters()), few(name))
    assert (mover.delta_t, mover.fraction, mover.t_end) == (8, 0.3, 3)


def test_imp_needs_no_round_at_density_one(few):
    assert subspace.summary(method("imp").apply(models.lenet5(Key(0)), few("imp", density=1.0))).dim == 61_210


def test_the_data_of_a_saliency_are_one_batch_drawn_from_the_seed(few):
    seen = []

    class Net(torch.nn.Module):
        def forward(self, images):
            seen.append(images)
            return images.mean((1, 2, 3)).unsqueeze(1) * torch.tensor([1.0, -1.0, 2.0])

    setting = few("snip")
    logits = Net()(setting.images)
    everything = torch.nn.functional.cross_entropy(logits, setting.labels)
    assert setting.loss(30)(Net()) == pytest.approx(everything.item())
    assert setting.loss(128)(Net()) == pytest.approx(everything.item())
    first, again, other = (few("snip", seed=seed).loss(5) for seed in (0, 0, 1))
    values = [objective(Net()).item() for objective in (first, first, again, other)]
    assert values[0] == values[1] == values[2] != values[3]
    assert [len(images) for images in seen[-4:]] == [5] * 4
    cooled = torch.nn.functional.cross_entropy(logits / 200, setting.labels)
    assert setting.balanced_loss(per_class=10, temperature=200)(Net()) == pytest.approx(cooled.item())
    setting.balanced_loss(per_class=4, temperature=1)(Net())
    places = [int((setting.images == image).flatten(1).all(1).nonzero()) for image in seen[-1]]
    assert torch.bincount(setting.labels[places]).tolist() == [4, 4, 4]
    assert len(set(places)) == 12


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
