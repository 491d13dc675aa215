"""Laws of data sets: the same numbers every time, what is published, and anyone's own."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from scipy.interpolate import interp1d
from scipy.ndimage import gaussian_filter
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset, random_split

from subspace import Key
from subspace.study import data, models
from subspace.study.data import mnist1d as mnist1d_function
from subspace.study.data import stdlib as stdlib_function
from subspace.study.data.samples import Tensors
from subspace.study.data.subsets import proportional_subset
from subspace.study.entries.entry import Choice

LABELS = torch.arange(5).repeat_interleave(20)[torch.from_numpy(Key(3).permutation(100))].numpy()
signals, texts = (sys.modules[each.__module__] for each in (mnist1d_function, stdlib_function))


def test_text_is_characters_and_the_next_of_each_and_the_test_is_of_other_files():
    train, test, classes = data.load(Choice("stdlib", {"length": 50}))
    for part, names, count in ((train, texts.TRAIN, 167_913), (test, texts.TEST, 33_269)):
        assert part.inputs.shape == part.labels.shape == ((count - 1) // 50, 50)
        assert torch.equal(part.inputs.flatten()[1:], part.labels.flatten()[:-1])
        text = bytes(part.inputs.flatten().tolist()).decode("ascii")
        assert texts.read(names).decode("ascii").startswith(text)
    assert bytes(train.inputs[0].tolist()).startswith(b'"""\nModule difflib')
    assert not set(texts.TRAIN) & set(texts.TEST)
    assert max(int(part.labels.max()) for part in (train, test)) < classes == 128


def test_another_text_is_warned_of_and_none_or_a_window_that_does_not_fit_is_refused(monkeypatch, tmp_path):
    for length in (0, 33_269, True, 2.0):
        with pytest.raises(ValueError, match=rf"^length must be an integer in \[1, 33268\] for stdlib, got {length}$"):
            texts.stdlib(length)
    monkeypatch.setattr(texts.os, "__file__", str(tmp_path / "os.py"))
    with pytest.raises(ValueError, match=r"^Python must come with its sources for stdlib, got none of difflib\.py$"):
        texts.stdlib()
    for name in (*texts.TRAIN, *texts.TEST):
        (tmp_path / name).write_bytes("an \u00e4\r\n".encode())
    with pytest.warns(UserWarning, match="must have the SHA-256 2127373ca43586b7"):
        train, _, _ = texts.stdlib(4)
    assert bytes(train.inputs.flatten().tolist()) == b"an ?\nan ?\nan ?\nan ?"[:16]


def test_the_split_is_stratified_disjoint_complete_and_the_same_every_time():
    train, test = data.stratified(LABELS, 0.2, Key(0))
    again = data.stratified(LABELS, 0.2, Key(0))
    assert torch.equal(train, again[0])
    assert torch.equal(test, again[1])
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(100))
    assert torch.bincount(torch.from_numpy(LABELS)[test]).tolist() == [4] * 5
    assert not torch.equal(test, data.stratified(LABELS, 0.2, Key(1))[1])


def test_fewer_samples_are_of_all_classes_in_proportion_and_among_those_that_are_more():
    uneven = np.repeat([0, 1, 2], [60, 30, 10])
    before: set[int] = set()
    for count in range(1, 101):
        places = proportional_subset(uneven, count, Key(0), "train")
        assert len(places) == len(set(places)) == count
        assert (np.diff(places) > 0).all()
        assert (abs(np.bincount(uneven[places], minlength=3) - count * np.array([0.6, 0.3, 0.1])) <= 1).all()
        assert before < set(places)
        before = set(places)
    assert proportional_subset(uneven, None, Key(0), "train").tolist() == list(range(100))
    assert (
        proportional_subset(uneven, 9, Key(0), "train").tolist()
        != proportional_subset(uneven, 9, Key(1), "train").tolist()
    )


@pytest.mark.slow
def test_the_digits_are_4000_and_1000_balanced_normalised_and_look_like_digits():
    train, test, classes = data.load(Choice("mnist5k"))
    assert (train.inputs.shape, test.inputs.shape, classes) == ((4000, 1, 28, 28), (1000, 1, 28, 28), 10)
    assert torch.bincount(train.labels).tolist() == [400] * 10
    assert torch.bincount(test.labels).tolist() == [100] * 10
    assert abs(train.inputs.mean()) < 1e-4
    assert abs(train.inputs.std(correction=0) - 1) < 1e-4
    means = torch.stack([train.inputs[train.labels == digit].mean(0).flatten() for digit in range(10)])
    assert (means.mean(1).argmin(), means.mean(1).argmax()) == (1, 0)  # a one takes the least ink, a zero the most
    nearest = torch.cdist(test.inputs.flatten(1), means).argmin(1)
    assert (nearest == test.labels).double().mean() > 0.7  # images and labels belong together
    some = data.load(Choice("mnist5k", {"train": 50, "test": 20}))
    assert (some.train.labels.bincount().tolist(), some.test.labels.bincount().tolist()) == ([5] * 10, [2] * 10)
    assert {image.numpy().tobytes() for image in some.test.inputs} <= {image.numpy().tobytes() for image in test.inputs}


def test_the_digits_of_scikit_learn_are_all_there_and_stratified():
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    train, test, classes = data.load(Choice("digits"))
    pixels, labels = load_digits(return_X_y=True)
    assert (train.inputs.shape, test.inputs.shape, classes) == ((1438, 1, 8, 8), (359, 1, 8, 8), 10)
    assert abs(train.inputs.mean()) < 1e-4
    assert abs(train.inputs.std(correction=0) - 1) < 1e-4
    ours = torch.cat([train.inputs, test.inputs]).flatten(1).double()
    scale = (pixels.max() - pixels.min()) / (ours.max() - ours.min())
    rows = np.column_stack([torch.cat([train.labels, test.labels]), ((ours - ours.min()) * scale).round()])
    assert sorted(map(tuple, rows)) == sorted(map(tuple, np.column_stack([labels, pixels])))
    assert (abs(np.bincount(test.labels) - 0.2 * np.bincount(labels)) <= 0.5).all()


def published(template, draws, i):
    """One signal of MNIST-1D, step by step as its author's code makes it."""
    x = np.concatenate([template + 1e-8, np.zeros(draws.padding[i])])
    x = interp1d(np.linspace(0, 1, len(x)), x)(np.linspace(0, 1, 72)) * draws.scale[i]
    k = draws.rotation[i]
    x = np.concatenate([x[-k:], x[:-k]])
    mask = x != 0
    x = mask * x + (1 - mask) * gaussian_filter(draws.correlated[i], 2) + draws.noise[i]
    x = x - draws.shear[i] * np.linspace(-0.5, 0.5, 72)
    return interp1d(np.linspace(0, 1, 72), x)(np.linspace(0, 1, 40))


def test_signals_are_made_by_the_published_procedure():
    draws, shapes = signals.drawn(Key(1), 60), signals.templates()[np.arange(60) % 10]
    reference = [published(shapes[i], draws, i) for i in range(60)]
    assert np.allclose(signals.made(shapes, draws), reference, atol=1e-12)
    many = signals.drawn(Key(0), 20_000)
    assert (many.padding.min(), many.padding.max(), many.rotation.min(), many.rotation.max()) == (36, 60, 0, 47)
    for values, spread in ((many.scale - 1, 0.4), (many.shear, 0.75)):
        assert abs(values).max() == pytest.approx(spread / 2, rel=1e-3)
        assert values.std() == pytest.approx(spread / 12**0.5, rel=0.02)
    assert (many.correlated.std(), many.noise.std()) == (pytest.approx(0.25, rel=0.01), pytest.approx(0.02, rel=0.01))


@pytest.mark.slow
def test_signals_are_balanced_normalised_and_as_hard_as_published():
    linear = pytest.importorskip("sklearn.linear_model").LogisticRegression(max_iter=1000)
    of = data.load(Choice("mnist1d"))
    train, test, classes = of
    assert (train.inputs.shape, test.inputs.shape, classes) == ((4000, 1, 40), (1000, 1, 40), 10)
    everything = torch.cat([train.inputs, test.inputs])
    assert torch.bincount(torch.cat([train.labels, test.labels])).tolist() == [500] * 10
    assert abs(everything.mean()) < 1e-4
    assert abs(everything.std(correction=0) - 1) < 1e-4
    linear.fit(train.inputs.flatten(1).numpy(), train.labels.numpy())
    assert linear.score(test.inputs.flatten(1).numpy(), test.labels.numpy()) == pytest.approx(0.32, abs=0.05)
    net = models.build(Choice("conv1d"), of, Key(0))
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for start in list(range(0, 4000, 100)) * 6:
        optimizer.zero_grad()
        cross_entropy(net(train.inputs[start : start + 100]), train.labels[start : start + 100]).backward()
        optimizer.step()
    assert (
        net(test.inputs).argmax(1) == test.labels
    ).double().mean() > 0.6  # logistic regression and chance are far below


INPUTS, TARGETS = torch.arange(24.0).reshape(12, 2), torch.arange(12) % 3


@pytest.fixture
def mine(monkeypatch):
    """A module to import from."""
    module = ModuleType("mine")
    monkeypatch.setitem(sys.modules, "mine", module)
    yield module
    data.load.cache_clear()


def test_data_of_ones_own_are_datasets_or_samples_and_loaded_once(mine):
    made = []

    def make(count=12):
        made.append(count)
        return TensorDataset(INPUTS[:count], TARGETS[:count]), TensorDataset(INPUTS, TARGETS)

    mine.make = make
    mine.three = lambda: (Tensors(INPUTS, TARGETS), TensorDataset(INPUTS, TARGETS), 5)
    first = data.load(Choice("mine:make"))
    assert data.load(Choice("mine:make")) is first
    assert (len(first.train), len(first.test), first.num_classes) == (12, 12, 3)
    assert len(data.load(Choice("mine:make", {"count": 4})).train) == 4
    assert made == [12, 4]
    assert data.load(Choice("mine:three")).num_classes == 5


def test_data_of_ones_own_that_are_divided_at_random_are_the_same_every_time(mine):
    mine.make = lambda: random_split(TensorDataset(INPUTS, TARGETS), [8, 4])
    parts = []
    for _ in range(2):
        data.load.cache_clear()
        state = torch.get_rng_state()
        parts.append(data.load(Choice("mine:make")).train.batch(torch.arange(8))[0])
        assert torch.equal(torch.get_rng_state(), state)
        torch.rand(1)
    assert torch.equal(*parts)
    assert not torch.equal(parts[0], INPUTS[:8])


def labelled(*labels):
    return TensorDataset(torch.zeros(len(labels), 1), torch.tensor(labels))


GOOD = labelled(0, 1)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ((GOOD,), r"^data of mine:make must be \(train, test\) or \(train, test, num_classes\), got 1 of them$"),
        (GOOD, r"^data of mine:make must be .*, got TensorDataset$"),
        ((GOOD, 3), r"^samples must be a map-style Dataset, got int$"),
        ((labelled(), GOOD), r"^data of mine:make must have samples to train on, got none$"),
        ((GOOD, labelled()), r"^data of mine:make must have samples to test on, got none$"),
        (
            (GOOD, labelled(0.5)),
            r"^labels must be one integer a sample, or a row of them, got torch.float32 of shape \(1,\)$",
        ),
        ((labelled([0, 1]), GOOD), r"^labels of .* must be of one shape to train and to test on, got \(2,\) and \(\)$"),
        ((labelled([[0, 1]]), GOOD), r"^labels must be one integer a sample, or a row of them, got"),
        ((GOOD, [(0.0, "cat")]), r"^labels must be one integer a sample, got 'cat'$"),
        ((GOOD, [(0.0, 1, 2)]), r"^items must be pairs of an input and a label, got tuple at 0$"),
        ((GOOD, labelled(-1)), r"^labels of mine:make must be in range\(2\), got -1$"),
        ((GOOD, labelled(3), 3), r"^labels of mine:make must be in range\(3\), got 3$"),
        ((GOOD, GOOD, 2.0), r"^num_classes of mine:make must be an integer of at least 1, got 2.0$"),
    ],
)
def test_what_is_no_data_is_refused_in_one_sentence(made, message, mine):
    mine.make = lambda: made
    with pytest.raises(ValueError, match=message):
        data.load(Choice("mine:make"))


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (Choice("mnist5"), r"^data must be one of mnist5k, .* MODULE:NAME, got 'mnist5'; did you mean 'mnist5k'\?$"),
        (Choice("mnist5k", {"augment": True}), r"^options of mnist5k must be test, train, got 'augment'$"),
        (Choice("cifar10", {"data_dri": "x"}), r"^options of cifar10 must be .*did you mean 'data_dir'\?$"),
        (Choice("mine:make", {"cuont": 1}), r"^options of mine:make must be count, got 'cuont'; did you mean 'count'"),
        (Choice("mine:nothing"), r"^data must be an import path MODULE:NAME, got 'mine:nothing'"),
        (Choice("mine:number"), r"^data must be a function that returns data, got int at 'mine:number'$"),
    ],
)
def test_unknown_names_and_options_are_named_with_the_nearest(choice, message, mine):
    mine.make, mine.number = lambda count=1: None, 3
    with pytest.raises(ValueError, match=message):
        data.load(choice)
