"""Laws of the networks: sizes are the published ones, initialisation comes from a key, and every one of them trains."""

import copy
import itertools
from functools import partial

import numpy as np
import pytest
import scipy.fft
import scipy.stats
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

import subspace
from subspace import Key, recipes
from subspace.study import models
from subspace.study.data import Data, Tensors
from subspace.study.entries.entry import Choice
from subspace.study.methods.alphas import set_alphas
from subspace.study.models.gpt import rotated
from tests.support.cases import rest_slow

CIFAR, MNIST, SIGNAL, TEXT = (3, 32, 32), (1, 28, 28), (1, 40), (12,)
# name, options, input, tensors L, weights N, what trains beside them, all numbers, 10^6 multiply-adds (others' figures)
SIZES = [
    ("lenet5", {}, MNIST, 5, 61_210, {}, 61_210, 0.416),
    ("lenet5", {"in_channels": 3, "image_size": 32}, CIFAR, 5, 61_510, {}, 61_510, None),
    ("mlp", {}, MNIST, 3, 198_800, {"bias": 410}, 199_210, 0.199),
    ("mlp", {"hidden": [300, 100]}, MNIST, 3, 266_200, {"bias": 410}, 266_610, 0.266),
    ("conv1d", {}, SIGNAL, 4, 5_125, {"bias": 85}, 5_210, None),
    ("lstm_lm", {}, TEXT, 3, 147_456, {"bias": 1_152}, 148_608, None),
    ("lstm_lm", {"width": 64, "depth": 2}, TEXT, 5, 90_112, {"bias": 1_152}, 91_264, None),
    ("gpt", {}, TEXT, 14, 356_352, {}, 356_352, None),
    ("gpt", {"width": 64, "depth": 2, "heads": 2}, TEXT, 10, 114_688, {}, 114_688, None),
    ("resnet20", {}, CIFAR, 20, 268_336, {"norm": 1_376, "bias": 10}, 269_722, 40.8),
    ("resnet20", {"blocks": 1, "width": 8}, CIFAR, 8, 18_968, {"norm": 240, "bias": 10}, 19_218, None),
    ("lenet5", {"norm": True}, MNIST, 5, 61_210, {"norm": 448}, 61_658, None),
    ("lenet5", {"width": 2}, MNIST, 5, 242_900, {}, 242_900, None),
    ("mlp", {"hidden": [100], "depth": 3}, MNIST, 4, 78_400 + 20_000 + 1_000, {"bias": 310}, 99_710, None),
    ("mlp", {"norm": True}, MNIST, 3, 198_800, {"bias": 410, "norm": 800}, 200_010, None),
    ("resnet18", {}, CIFAR, 21, 11_164_352, {"norm": 9_600, "bias": 10}, 11_173_962, 556),
    ("resnet50", {}, CIFAR, 54, 23_652_032, {"norm": 53_120, "bias": 100}, 23_705_252, 1_300),
    ("vgg19", {}, CIFAR, 17, 20_024_000, {"norm": 11_008, "bias": 10}, 20_035_018, 398),
    ("vgg19", {"num_classes": 100}, CIFAR, 17, 20_070_080, {"norm": 11_008, "bias": 100}, 20_081_188, 398),
    ("vgg19", {"num_classes": 200}, (3, 64, 64), 17, 20_121_280, {"norm": 11_008, "bias": 200}, 20_132_488, 1_592),
    ("mobilenet_v2", {}, CIFAR, 58, 2_261_824, {"norm": 35_088, "bias": 10}, 2_296_922, 93),
    ("fixup_resnet110", {}, CIFAR, 110, 1_719_856, {"bias": 218 + 10, "other": 54}, 1_720_138, 253),
    ("vit_tiny", {}, CIFAR, 50, 5_319_552, {"bias": 20_938, "norm": 9_600, "other": 12_672}, 5_362_762, None),
]
INPUTS = {name: shape for name, _, shape, *_ in SIZES} | {"lenet5": MNIST, "vgg19": CIFAR}


def on_meta(name, options):
    with torch.device("meta"):
        return models.MODELS[name](Key(0), **options)


def test_every_network_is_in_the_table_of_sizes():
    assert INPUTS.keys() == models.MODELS.keys()


@pytest.mark.parametrize(
    ("name", "options", "shape", "tensors", "weights", "beside", "numbers", "macs"), rest_slow(SIZES, SIZES[::3])
)
def test_sizes_are_the_published_ones(name, options, shape, tensors, weights, beside, numbers, macs):
    model = on_meta(name, options)
    prunable = [m.weight for m in model.modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d)]
    recurrent = (m.named_parameters() for m in model.modules() if isinstance(m, nn.LSTM))
    prunable += [weight for named in recurrent for name, weight in named if name.startswith("weight")]
    assert (len(prunable), sum(weight.numel() for weight in prunable)) == (tensors, weights)
    assert sum(p.numel() for p in model.parameters()) == numbers
    if macs:
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, *shape, device="meta"))
        assert counter.get_total_flops() / 2e6 == pytest.approx(macs, rel=0.02)
    size = subspace.summary(recipes.dctps(model, density=0.001))
    assert (len(size.rows), size.weights, size.beside, size.alpha) == (tensors, weights, beside, tensors)


@pytest.fixture(scope="module")
def built():
    """Every network once, at its default size."""
    return {name: make(Key(3)) for name, make in models.MODELS.items()}


def kaiming(name, tensor):
    return (2 / tensor[0].numel()) ** 0.5


def fixup(name, tensor):
    if name == "conv1.weight":
        return kaiming(name, tensor)
    fan_out = tensor.shape[0] * tensor[0, 0].numel() if name.endswith("conv1.weight") else float("inf")
    return (2 / fan_out / 54) ** 0.5


@pytest.mark.parametrize("name", models.MODELS)
def test_weights_are_kaiming_normal_norms_and_biases_neutral(name, built):
    std = fixup if name == "fixup_resnet110" else kaiming
    for module_name, module in built[name].named_modules():
        for short, parameter in module.named_parameters(recurse=False):
            full = f"{module_name}.{short}".lstrip(".")
            values, wanted = parameter.detach().flatten(), 0.0 if "bias" in short else 1.0
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) and short == "weight":
                wanted = std(full, parameter)
                assert values.std() == pytest.approx(wanted, rel=5 / len(values) ** 0.5), full
                assert abs(values.mean()) <= 5 * wanted / len(values) ** 0.5, full
            elif isinstance(module, nn.LSTM) and "weight" in short:
                assert values.std() == pytest.approx((3 * parameter.shape[1]) ** -0.5, rel=5 / len(values) ** 0.5), full
            elif short in ("start", "positions"):
                assert values.std() == pytest.approx(0.02, rel=5 / len(values) ** 0.5), full
            else:
                assert (values == wanted).all(), full
    for full, buffer in built[name].named_buffers():
        assert (buffer == (1 if full.endswith("running_var") else 0)).all(), full


@pytest.mark.parametrize("name", [name for name in models.MODELS if name not in ("resnet50", "vgg19", "resnet18")])
def test_the_key_says_every_bit_and_no_generator_is_moved(name, built):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    same, other = models.MODELS[name](Key(3)).state_dict(), models.MODELS[name](Key(4)).state_dict()
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()
    first = built[name].state_dict()
    assert all(torch.equal(first[entry], same[entry]) for entry in first)
    assert any(not torch.equal(first[entry], other[entry]) for entry in first)


def test_lenet5_has_its_shapes_and_its_tensors_are_drawn_apart():
    model = models.lenet5(Key(0))
    assert {name: tuple(weight.shape) for name, weight in model.named_parameters()} == {
        "conv1.weight": (6, 1, 5, 5),
        "conv2.weight": (16, 6, 5, 5),
        "conv3.weight": (120, 16, 5, 5),
        "fc1.weight": (82, 120),
        "fc2.weight": (10, 82),
    }
    drawn = [weight.flatten()[:150] / weight[0].numel() ** -0.5 for weight in model.parameters()]
    assert not any(torch.allclose(one, two) for one, two in itertools.combinations(drawn, 2))
    weight = model.conv2.weight
    assert torch.equal(weight, subspace.offsets.Gaussian(weight, key=Key(0).fold("conv2.weight"))())


@pytest.mark.slow
@pytest.mark.parametrize("name", models.MODELS)
def test_every_network_trains_dense_and_structured(name, built):
    model, shape = copy.deepcopy(built[name]), INPUTS[name]
    inputs, labels = torch.from_numpy(Key(1).normal(3 * int(np.prod(shape)), dtype="float32")), torch.tensor([0, 1, 2])
    inputs = inputs.reshape(3, *shape)
    if shape == TEXT:
        inputs, labels = inputs.abs().long(), labels[:, None].expand(-1, *shape)
    cross_entropy(model(inputs), labels).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.zero_grad()
    model = recipes.dctps(model, density=0.01)
    if name == "fixup_resnet110":
        set_alphas(model)
    plain = model.eval()(inputs)
    classes = {"resnet50": (100,), "lstm_lm": (128, *TEXT), "gpt": (128, *TEXT)}
    assert plain.shape == (3, *classes.get(name, (10,)))
    fast = subspace.structured(model)(inputs)
    assert torch.allclose(fast, plain, rtol=1e-3, atol=1e-3 * plain.abs().max().item())
    cross_entropy(model.train()(inputs), labels).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def filter_norms(n_in, n_out):
    """The expected norm of a filter of Fixup's Gaussian, and the mean norm of one of the DCT's."""
    q = max(n_in, n_out)
    D = scipy.fft.dct(np.eye(q), norm="ortho", axis=1)[:n_in, :n_out].T
    gaussian = (2 / (9 * n_out) / 54) ** 0.5 * scipy.stats.chi.mean(n_in)
    return gaussian, np.linalg.norm(D, axis=1).mean()


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "equal", "wider"), [("authors", 0.438, 0.369), ("norms", 0.192, 0.136)])
@pytest.mark.parametrize("density", [0.01, 0.1])  # at 0.1 the stem and some more have a full S, and no alpha
def test_fixup_under_dctps_starts_by_the_alphas_of_the_rule(rule, equal, wider, density):
    model = set_alphas(recipes.dctps(models.fixup_resnet110(Key(0)), density=density), rule)
    plain = models.fixup_resnet110(Key(0))
    for name, space in subspace.subspaces(model):
        weight, old = getattr(space.module, space.name).detach(), plain.get_parameter(name)
        d = subspace.offsets.DCT(weight)()
        alpha = (weight * d).sum().item() / d.square().sum().item()
        assert torch.allclose(weight, alpha * d, atol=1e-5), name
        if name == "conv1.weight":
            assert alpha == pytest.approx(1)
        elif name.endswith("conv1.weight"):
            t, c = filter_norms(9 * weight.shape[1], weight.shape[0])
            assert alpha == pytest.approx(t / c if rule == "norms" else (t / c) ** 0.5, rel=1e-4), name
            assert alpha == pytest.approx(wider if weight.shape[0] > weight.shape[1] else equal, abs=2e-3), name
            if rule == "norms":
                norms = [tensor.flatten(1).norm(dim=1).mean().item() for tensor in (weight, old)]
                assert norms[0] == pytest.approx(norms[1], rel=0.1), name
        else:
            assert alpha == pytest.approx(0, abs=1e-7), name


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: set_alphas(models.fixup_resnet110(Key(0)), "mine"), "rule must be authors or norms, got 'mine'"),
        (lambda: set_alphas(models.lenet5(Key(0))), "model must be a FixupResNet, got LeNet5"),
        (lambda: set_alphas(recipes.ordinary(models.fixup_resnet110(Key(0)))), "conv1.weight must be alpha D "),
        (lambda: models.lenet5(Key(0), image_size=64), "image_size must be 28 or 32 for lenet5, got 64"),
        (lambda: models.lenet5(Key(0), width=0), "width must be positive for lenet5, got 0"),
        (lambda: models.resnet20(Key(0), blocks=0), "blocks and width must be at least 1 for resnet20, got 0 and 16"),
        (lambda: models.conv1d(Key(0), input_shape=CIFAR), r"input_shape must be \(channels, length .*got \(3, 32, 32"),
        (lambda: models.mlp(Key(0), hidden=200), "hidden must be the sizes of the hidden layers, got 200"),
        (lambda: models.mlp(Key(0), depth=0), "depth must be an integer of at least 1 for mlp, got 0"),
        (lambda: models.vit_tiny(Key(0), image_size=30), "image_size must be a multiple of patch, 4, .*got 30"),
        (lambda: models.vit_tiny(Key(0), heads=5), "width must be a multiple of heads, 5, got 192"),
        (lambda: models.vit_tiny(Key(0), depth=0), "depth must be an integer of at least 1 for vit_tiny, got 0"),
        (lambda: models.gpt(Key(0), depth=True), "depth must be an integer of at least 1 for gpt, got True"),
        (lambda: models.gpt(Key(0), width=9), "width must be a multiple of twice the heads, 6, for gpt, got 9"),
    ],
)
def test_what_a_network_cannot_be_is_refused_in_one_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", ["gpt", "lstm_lm"])
def test_a_language_model_sees_no_later_character(name):
    model = getattr(models, name)(Key(0), num_classes=7).eval()
    text = torch.from_numpy(Key(1).integers(24, 7)).reshape(2, 12)
    changed = text.clone()
    changed[:, 8:] = (changed[:, 8:] + 1) % 7
    before, after = model(text), model(changed)
    assert torch.allclose(before[..., :8], after[..., :8], atol=1e-5)
    assert not torch.allclose(before[..., 8], after[..., 8])


def test_a_gpt_knows_the_order_of_characters_and_not_where_they_begin():
    model = models.gpt(Key(0), num_classes=7, depth=1).eval()
    text = torch.tensor([[1, 2, 3], [2, 1, 3]])
    one, other = model(text)[..., -1]
    assert not torch.allclose(one, other)
    x = torch.randn(4, 2, 5, 8, dtype=torch.float64)
    scores = rotated(x) @ rotated(x).mT
    same = x[:, :, :1].expand_as(x)
    relative = rotated(same) @ rotated(same).mT
    assert torch.allclose(relative[..., 1:, 1:], relative[..., :-1, :-1])
    assert torch.allclose(scores.diagonal(dim1=-2, dim2=-1), x.square().sum(-1))


def test_a_stem_and_biases_can_be_torchs_default():
    stem = models.fixup_resnet110(Key(0), stem="torch").conv1.weight.detach()
    assert stem.abs().max() <= 27**-0.5
    assert stem.std() == pytest.approx((3 * 27) ** -0.5, rel=0.1)
    others = [models.fixup_resnet110(Key(0), stem=kind).blocks[0].conv1.weight for kind in ("kaiming", "torch")]
    assert torch.equal(*others)
    samples = Tensors(torch.zeros(2, 1, 8, 8), torch.tensor([0, 1]))
    build = partial(models.build, data=Data(samples, samples, 2), key=Key(0))
    plain, drawn = build(Choice("mlp")), build(Choice("mlp", {"biases": "uniform"}))
    for one, other in zip(plain.layers, drawn.layers, strict=True):
        assert torch.equal(one.weight, other.weight)
        assert not one.bias.any()
        assert 0 < other.bias.abs().max() <= one.in_features**-0.5
    for options, message in (({"biases": "none"}, "biases must be zero or uniform"), ({"stem": "x"}, "options of mlp")):
        with pytest.raises(ValueError, match=message):
            build(Choice("mlp", options))
    with pytest.raises(ValueError, match="stem must be kaiming or torch, got 'x'"):
        models.fixup_resnet110(Key(0), stem="x")


def test_a_narrow_vgg_has_the_same_tensors_of_a_fraction_of_the_width():
    wide, narrow = (models.vgg19(Key(0), **options) for options in ({}, {"width": 8}))
    shapes = [(a.shape, b.shape) for a, b in zip(wide.parameters(), narrow.parameters(), strict=True) if a.ndim == 4]
    assert all(a[0] == 8 * b[0] and (a[1] == 8 * b[1] or a[1] == b[1] == 3) for a, b in shapes)
    for width in (0, 1.5, True):
        with pytest.raises(ValueError, match=f"width must be an integer of at least 1 for vgg19, got {width}"):
            models.vgg19(Key(0), width=width)
