"""Laws of building a model: by name, by import path or out of a library, told what it asks for, drawn from the key."""

import random
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from subspace import Key
from subspace.study import models
from subspace.study.data import Data, Tensors
from subspace.study.entries.entry import Choice
from tests.support.cases import rest_slow


def data(*shape, num_classes=7):
    """Two samples of that shape."""
    samples = Tensors(torch.zeros(2, *shape), torch.tensor([0, 6]))
    return Data(samples, samples, num_classes)


def text(length, num_classes=7):
    """Two windows of characters."""
    samples = Tensors(*torch.zeros(2, 2, length, dtype=torch.int64))
    return Data(samples, samples, num_classes)


IMAGES = data(3, 32, 32)


def build(name, data=IMAGES, seed=0, **options):
    return models.build(Choice(name, options), data, Key(seed))


@pytest.fixture
def mine(monkeypatch):
    """A module to import from."""
    module = ModuleType("mine")
    monkeypatch.setitem(sys.modules, "mine", module)
    return module


@pytest.mark.parametrize("name", rest_slow(models.MODELS, list(models.MODELS)[::3]))
def test_a_model_by_name_fits_the_data(name):
    special = {"lenet5": data(1, 28, 28), "conv1d": data(2, 50), "mlp": data(2, 5, 4, 3)}
    special |= {"lstm_lm": text(9), "gpt": text(9)}
    of = special.get(name, data(1, 16, 16))
    model = build(name, of)
    assert model.eval()(of.train.inputs).shape == (2, 7, *of.train.labels.shape[1:])


def test_options_go_to_the_function():
    sizes = [tuple(layer.weight.shape) for layer in build("mlp", hidden=[5, 4]).layers]
    assert sizes == [(5, 3072), (4, 5), (7, 4)]


def test_a_function_of_ones_own_is_given_by_name_what_it_asks_for(mine):
    def made(num_classes, in_channels, image_size, key, width=3, **rest):
        seen.update(locals())
        return nn.Linear(width, num_classes)

    seen = {}
    mine.made, mine.Net = made, lambda num_classes: nn.Linear(1, num_classes)
    assert build("mine:made", seed=5, width=4, depth=2).weight.shape == (7, 4)
    assert {name: value for name, value in seen.items() if name != "seen"} == {
        "num_classes": 7,
        "in_channels": 3,
        "image_size": 32,
        "key": Key(5),
        "width": 4,
        "rest": {"depth": 2},
    }
    assert build("mine:Net", data(40)).weight.shape == (7, 1)
    mine.made = lambda image_size, input_shape: seen.update(sides=image_size, shape=input_shape) or nn.Identity()
    build("mine:made", data(3, 8, 6))
    assert (seen["sides"], seen["shape"]) == ((8, 6), (3, 8, 6))


def states():
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


def test_what_a_constructor_draws_comes_from_the_key_and_moves_no_generator(mine):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)
            self.numbers = nn.Parameter(torch.tensor([random.random(), np.random.rand()]))

    mine.Net, before = Net, states()
    first = build("mine:Net").state_dict()
    torch.rand(3), np.random.rand(3), random.random()
    between = states()
    again, other = build("mine:Net").state_dict(), build("mine:Net", seed=1).state_dict()
    assert states() == between != before
    for name in first:
        assert torch.equal(first[name], again[name]), name
        assert (first[name] != other[name]).all(), name


def test_the_generators_are_as_they_were_after_a_constructor_that_fails(mine):
    def failing():
        torch.rand(1), np.random.rand(), random.random()
        raise RuntimeError("no")

    mine.failing, before = failing, states()
    with pytest.raises(RuntimeError, match="no"):
        build("mine:failing")
    assert states() == before


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet2", {}, r"^model must be one of lenet5, .* or an import path MODULE:NAME, got 'resnet2'; did you mean"),
        ("zzz", {}, r"got 'zzz'$"),
        (
            "resnet18",
            {"clases": 3},
            r"^options of resnet18 must be (biases, )?in_channels, num_classes, got 'clases'; did you mean",
        ),
        ("mlp", {"hiden": [3]}, r"got 'hiden'; did you mean 'hidden'\?$"),
        ("lenet5", {"key": 3}, r"^options of lenet5 must be .*, got 'key'$"),
        ("nowhere:made", {}, r"^model must be an import path MODULE:NAME, got 'nowhere:made': No module named"),
        ("mine:nothing", {}, r"^model must be an import path MODULE:NAME, got 'mine:nothing'"),
        ("mine:number", {}, r"^model must be a function that returns one, got int at 'mine:number'$"),
        ("mine:text", {}, r"^model must be a torch.nn.Module, got str from 'mine:text'$"),
        ("mine:wants", {}, r"^mine:wants must be given what it needs, got missing a required argument: 'depth'$"),
        ("torchvision:resnet18", {}, r"^torchvision must be installed for its models, got none: pip install torch"),
        ("timm:resnet18", {}, r"^timm must be installed for its models, got none: pip install timm$"),
        ("transformers:vit", {}, r"^transformers must be installed .*: pip install transformers$"),
    ],
)
def test_what_is_no_model_is_refused_in_one_sentence(name, options, message, mine, monkeypatch):
    mine.number, mine.text, mine.wants = 3, lambda: "net", lambda depth: nn.Identity()
    for library in ("torchvision", "timm", "transformers"):
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ValueError, match=message):
        build(name, **options)
    if options:  # is said before anything is trained, too
        with pytest.raises(ValueError, match=message):
            models.require(Choice(name, options))


class Foreign(nn.Module):
    """In place of a library's class: it keeps what it was called with."""

    def __init__(self, **given):
        super().__init__()
        self.given, self.layer = given, nn.Linear(2, 2)


def foreign(**given):
    if "depht" in given:
        raise TypeError("Foreign.__init__() got an unexpected keyword argument 'depht'")
    return Foreign(**given)


@pytest.fixture
def libraries(monkeypatch):
    """Stand-ins with the functions of torchvision 0.2x and timm 1.0 that are called, and their signatures."""
    vision, timm = ModuleType("torchvision"), ModuleType("timm")
    vision.models = SimpleNamespace(
        list_models=lambda module=None: ["resnet18", "vit_b_16"],
        get_model=lambda name, **config: foreign(name=name, **config),
    )
    cfgs = {"resnet18": SimpleNamespace(fixed_input_size=False), "vit_tiny": SimpleNamespace(fixed_input_size=True)}
    timm.is_model = lambda model_name: model_name in cfgs
    timm.list_models = lambda filter="": sorted(cfgs)
    timm.get_pretrained_cfg = lambda model_name, allow_unregistered=True: cfgs[model_name]
    timm.create_model = lambda model_name, pretrained=False, **kwargs: foreign(
        name=model_name, pretrained=pretrained, **kwargs
    )
    monkeypatch.setitem(sys.modules, "torchvision", vision)
    monkeypatch.setitem(sys.modules, "timm", timm)


@pytest.mark.parametrize(
    ("name", "of", "given"),
    [
        ("torchvision:resnet18", IMAGES, {"weights": None, "num_classes": 7}),
        ("torchvision:vit_b_16", IMAGES, {"weights": None, "num_classes": 7, "image_size": 32}),
        ("timm:resnet18", data(1, 28, 28), {"pretrained": False, "num_classes": 7, "in_chans": 1}),
        ("timm:vit_tiny", IMAGES, {"pretrained": False, "num_classes": 7, "in_chans": 3, "img_size": 32}),
    ],
)
def test_other_libraries_are_told_the_classes_channels_and_size(name, of, given, libraries):
    model = build(name, of, dropout=0.5)
    assert model.given == {"name": name.partition(":")[2], "dropout": 0.5, **given}
    assert torch.equal(model.layer.weight, build(name, of).layer.weight)
    assert not torch.equal(model.layer.weight, build(name, of, seed=1).layer.weight)


@pytest.mark.parametrize(
    ("name", "of", "options", "message"),
    [
        (
            "torchvision:resnet17",
            IMAGES,
            {},
            r"must be one that torchvision has: resnet18, vit_b_16, got 'resnet17'; did you",
        ),
        ("timm:resnet17", IMAGES, {}, r"got 'resnet17'; did you mean 'resnet18'\?$"),
        ("torchvision:resnet18", data(1, 28, 28), {}, r"data must have 3 channels for torchvision:resnet18, got 1$"),
        ("timm:resnet18", data(40), {}, r"data must be images for timm:resnet18, got inputs of shape \(40,\)$"),
        ("timm:resnet18", IMAGES, {"depht": 3}, r"options of timm:resnet18 must be .*got \{'depht': 3\}: .*'depht'$"),
    ],
)
def test_what_a_library_does_not_have_is_refused_in_one_sentence(name, of, options, message, libraries):
    with pytest.raises(ValueError, match=message):
        build(name, of, **options)


TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 4}


def test_a_model_of_transformers_returns_its_logits():
    pytest.importorskip("transformers")
    of, before = data(1, 8, 8), states()
    model = build("transformers:vit", of, **TINY)
    assert states() == before
    logits = model(of.train.inputs)
    assert logits.shape == (2, 7)
    logits.sum().backward()
    again = build("transformers:vit", of, **TINY).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("transformers:vitt", {}, r"got 'vitt'; did you mean 'vit'\?$"),
        ("transformers:bert", {}, r"must be one that transformers has: .*, got 'bert'"),
        ("transformers:vit", {"hiden_size": 3}, r"got 'hiden_size'; did you mean 'hidden_size'\?$"),
    ],
)
def test_what_transformers_does_not_have_is_refused_in_one_sentence(name, options, message):
    pytest.importorskip("transformers")
    with pytest.raises(ValueError, match=message):
        build(name, **options)
