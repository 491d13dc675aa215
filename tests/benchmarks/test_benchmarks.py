"""The benchmarks measure what they say: the networks' sizes, the peers' products, the clock and the verdicts."""

import itertools
import json
import math
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import subspace
from benchmarks import conv, deltas, embedding, linear, memory, network, networks, peers, quick, timing
from benchmarks.targets import Group, Target
from benchmarks.variants import product, step, variant

# prunable tensors, prunable weights, numbers in norms, biases: 32 x 32 images, 100, 10 and 10 classes
SIZES = {
    "resnet50": (54, 23_652_032, 53_120, 100),
    "mobilenetv2": (58, 2_261_824, 35_088, 10),
    "vgg19": (17, 20_024_000, 11_008, 10),
    "resnet50-imagenet": (54, 25_502_912, 53_120, 1000),
    "vit": (24, 12 * 2 * 768 * 3072, 12 * 2 * 768, 12 * 5 * 768),
}
LAYERS = {
    "linear": (lambda: nn.Linear(5, 7), (3, 5)),
    "wide linear": (lambda: nn.Linear(7, 4, bias=False), (3, 7)),
    "conv": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), (2, 4, 7, 7)),
    "grouped conv": (lambda: nn.Conv2d(4, 6, (3, 1), groups=2, dilation=2), (2, 4, 7, 7)),
    "1x1": (lambda: nn.Conv2d(4, 9, 1), (2, 4, 5, 5)),
}


def parts(model):
    prunable = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.LayerNorm)]
    biases = [m.bias.numel() for m in prunable if m.bias is not None]
    weights = [m.weight.numel() for m in prunable]
    return len(prunable), sum(weights), sum(p.numel() for m in norms for p in m.parameters()), sum(biases)


@pytest.mark.parametrize("name", SIZES)
def test_networks_have_their_published_sizes(name):
    with torch.device("meta"):
        assert parts(networks.NETWORKS[name][0]()) == SIZES[name]


@pytest.mark.parametrize(
    "name, outputs", [("resnet50", (100,)), ("mobilenetv2", (10,)), ("vgg19", (10,)), ("vit", (197, 768))]
)
def test_networks_end_where_they_should(name, outputs):
    make, shape = networks.NETWORKS[name]
    with torch.device("meta"):
        assert make()(torch.empty(2, *shape)).shape == (2, *outputs)


def test_a_networks_distinct_layers_are_found_with_their_inputs():
    found = networks.layers(*[part() if callable(part) else part for part in networks.NETWORKS["mobilenetv2"]])
    assert {"3x3 3->32 @32", "3x3 192->192 @16 s2 g192", "1x1 320->1280 @4", "linear 1280->10"} - set(found) == set()
    for name, (layer, shape) in found.items():
        assert layer(torch.empty(1, *shape)).shape[1] == layer.weight.shape[0]
        if not name.startswith("linear"):
            assert networks.label(*conv.parsed(name)) == name


def dct_columns(n_in, n_out):
    """F[i, k] = c_k cos(pi (2i + 1) k / 2q), entry by entry."""
    q = max(n_in, n_out)
    norm = [math.sqrt((2 if k else 1) / q) for k in range(n_out)]
    waves = [[math.cos(math.pi * (2 * i + 1) * k / (2 * q)) * norm[k] for k in range(n_out)] for i in range(n_in)]
    return torch.tensor(waves, dtype=torch.float64)


@pytest.mark.parametrize("name", LAYERS)
def test_the_authors_layer_is_alpha_dct_plus_sparse(name):
    make, shape = LAYERS[name]
    layer = peers.authors(make().double(), 0.3)
    x = torch.randn(shape, dtype=torch.float64)
    layer.scaling.data.fill_(1.7)
    values = torch.randn_like(layer.sparse.weight) * layer.mask
    layer.sparse.weight.data.copy_(values)
    n_out, per_group, *kernel = values.shape
    D = torch.empty_like(values)
    columns = dct_columns(values[0].numel(), n_out)
    for o, c, *tap in itertools.product(*map(range, values.shape)):
        place = sum(t * math.prod(kernel[axis + 1 :]) for axis, t in enumerate(tap))
        D[(o, c, *tap)] = columns[place * per_group + c, o]
    W, plain = 1.7 * D + values, make().double()
    plain.weight.data.copy_(W)
    if plain.bias is not None:
        plain.bias.data.copy_(layer.sparse.bias)
    torch.testing.assert_close(layer(x), plain(x))


def test_the_authors_layer_trains_its_support_and_alpha_only():
    layer = peers.authors(nn.Linear(20, 30), 0.1)
    gx, *gradients = product("authors", layer, torch.randn(4, 20))()
    trained = dict(zip([n for n, p in layer.named_parameters() if p.requires_grad], gradients, strict=True))
    assert set(trained) == {"scaling", "sparse.weight", "sparse.bias"}
    assert gx.shape == (4, 20)
    assert trained["scaling"] != 0
    assert int(layer.mask.sum()) == 60
    assert torch.equal(trained["sparse.weight"] != 0, layer.mask != 0)


def test_prune_masks_keep_the_density():
    model = peers.pruned(nn.Sequential(nn.Conv2d(3, 10, 3), nn.Flatten(), nn.Linear(40, 50)), 0.1)
    assert [int(m.weight.count_nonzero()) for m in (model[0], model[2])] == [27, 200]


@pytest.mark.parametrize("n_out, n_in", [(6, 6), (5, 8), (7, 4)])
def test_fourier_ft_in_factors_is_pefts_dense_spectrum(n_out, n_in):
    U = subspace.embeddings.FourierFT(torch.empty(n_out, n_in), 5, key=subspace.Key(0), scale=3.0)
    theta, x = torch.randn(5), torch.randn(2, n_in)
    index = U.frequencies @ torch.tensor([n_in, 1])
    spectrum = np.zeros((n_out, n_in))
    spectrum.ravel()[index.numpy()] = theta.numpy()
    expected = x.double() @ torch.from_numpy(3.0 * np.fft.ifft2(spectrum).real).T
    for y in (U.linear(theta, x), peers.dense_fourier_ft(theta, index, (n_out, n_in), 3.0, x)):
        torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-6)


def test_the_embeddings_compared_are_of_one_shape():
    assert {name: call().shape for name, call in embedding.dense(3000, 16).items()} == dict.fromkeys(
        ("stored", "redrawn", "srht"), (3000,)
    )


class Clock:
    """A clock that goes on only when a call says so; every call costs its seconds, the first some more."""

    def __init__(self, monkeypatch):
        self.now, self.calls = 0.0, []
        monkeypatch.setattr(timing, "perf_counter", lambda: self.now)

    def call(self, name, seconds, setting_up=0.0):
        def costs():
            self.now += seconds + (0 if name in self.calls else setting_up)
            self.calls.append(name)

        return costs


def test_times_are_interleaved_and_exclude_the_setting_up(monkeypatch):
    clock = Clock(monkeypatch)
    calls = {"slow": clock.call("slow", 0.3), "fast": clock.call("fast", 0.1, setting_up=0.1)}
    times = timing.interleave(calls, rounds=20)
    assert times == {"slow": pytest.approx([0.3] * 20), "fast": pytest.approx([0.1] * 20)}
    measured = clock.calls[-40:]
    rounds = [tuple(measured[i : i + 2]) for i in range(0, 40, 2)]
    assert set(rounds) == {("slow", "fast"), ("fast", "slow")}
    assert timing.ratio(times, "slow", "fast") == pytest.approx((3, 3, 3))
    assert timing.best(times, ["slow", "fast"]) == "fast"


def test_short_calls_are_repeated_and_long_ones_end_the_rounds(monkeypatch):
    clock = Clock(monkeypatch)
    times = timing.interleave({"short": clock.call("short", 0.0001), "long": clock.call("long", 4.0)}, seconds=1)
    assert times == {"short": pytest.approx([0.0001] * 2), "long": pytest.approx([4.0] * 2)}
    assert clock.calls.count("short") >= 2 * timing.SHORTEST / 0.0001


def test_a_spread_is_the_median_and_the_quartiles():
    assert timing.spread([5, 1, 2, 4, 3]) == (3, 2, 4)


FASTER = Target("speed", "speed", 2, 4)
SMALLER = Target("memory", "memory", None, 10, "MB")


@pytest.mark.parametrize(
    "mode, speed, megabytes, verdicts",
    [
        ("native", 4, 10, ["ok", "ok"]),
        ("native", 3.9, 10.1, ["MISS", "MISS"]),
        ("wheels-only", 3.9, 10.1, ["ok"]),
        ("wheels-only", 1.9, 0, ["MISS"]),
    ],
)
def test_the_quick_command_prints_a_verdict_for_each_target(mode, speed, megabytes, verdicts, capsys):
    values = {"speed": timing.Spread(speed, 1, 5), "memory": timing.Spread(megabytes, 0, 20)}
    missed = quick.run([Group(lambda: values, [FASTER, SMALLER])], mode)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines] == verdicts
    assert missed == verdicts.count("MISS")
    assert f"{speed:.3g} x" in lines[0]
    assert "[1, 5]" in lines[0]


def test_what_has_no_target_in_a_mode_is_not_measured():
    assert quick.run([Group(lambda: pytest.fail("measured"), [SMALLER])], "wheels-only") == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_held_and_at_the_peak():
    def build():
        torch.ones(50_000_000)  # 200 MB that building alone needs
        kept = torch.ones(10_000_000)
        return lambda: (kept + 1).sum()

    measured = memory.measure(build)
    assert measured == pytest.approx({"held MB": 40, "peak MB": 80}, abs=8)


CASES = {
    "linear": {"name": "auto", "width": 64, "batch": 4, "density": 0.01},
    "network": {"name": "auto", "of": "mobilenetv2", "batch": 2, "density": 0.01},
    "mlp": {"name": "auto", "width": 64, "depth": 2, "batch": 4, "density": 0.01},
}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("case", CASES)
def test_memory_is_measured_in_every_case(case, monkeypatch, capsys):
    child = json.dumps({"case": case, **CASES[case]})
    monkeypatch.setattr(sys, "argv", ["x", "--threads", "1", "--child", child])
    memory.main()
    measured = json.loads(capsys.readouterr().out)
    assert measured.keys() == {"held MB", "peak MB"}


@pytest.mark.parametrize(
    "name", ["dense", "channels_last", "authors", "prune", "parametrized", "auto", "auto:channels_last"]
)
def test_every_variant_gives_all_gradients_and_trains(name):
    layer = variant(name, nn.Conv2d(3, 8, 3), 0.1)
    gradients = product(name, layer, torch.randn(2, 3, 6, 6))()
    assert [g.shape for g in gradients[1:]] == [p.shape for p in layer.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in layer.parameters() if p.requires_grad]
    step(name, layer, torch.randn(2, 3, 6, 6), adam=True)()
    after = [p for p in layer.parameters() if p.requires_grad]
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("kind", deltas.EMBEDDINGS)
def test_rows_at_once_and_separately_are_those_of_each_delta(kind):
    held = deltas.holder(deltas.stack(16, 2), kind, 20, 3)
    x, names = torch.randn(5, 2, 16), ["2", "0", "2", "1", "0"]
    each = deltas.at_once(held, x, names)
    torch.testing.assert_close(each, deltas.separate(held, x, names))
    plain = held.base(x)
    for row, name in enumerate(names):
        with held.using(name):
            torch.testing.assert_close(each[row], held.base(x)[row])
        assert not torch.allclose(each[row], plain[row], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command, options, pictures",
    [
        (linear, "--sizes 16 32 24x16 --batches 4 --densities 0.1 0.01", {"speedup-auto-4", "growth-4"}),
        (conv, "--batch 2 --routes auto bottleneck --layers", {"speedup"}),
        (network, "--networks mobilenetv2 --batch 2 --routes auto", {"steps"}),
        (embedding, "--numel 2000 --dim 8 --width 16 --batches 2", set()),
        (deltas, "--width 16 --depth 2 --dim 20 --batch 4 --tokens 2 --distinct 1 3 --held 5", set()),
    ],
)
def test_a_command_leaves_its_table_pictures_and_stamp(command, options, pictures, tmp_path, monkeypatch):
    layers = ["3x3 4->6 @5 s2", "1x1 4->6 @5"] if command is conv else []
    monkeypatch.setattr(
        sys, "argv", ["x", "--rounds", "2", "--threads", "1", "--out", str(tmp_path), *options.split(), *layers]
    )
    command.main()
    table = pd.read_csv(tmp_path / "table.csv")
    assert (table["seconds"].between(table["low"], table["high"]) & (table["low"] > 0)).all()
    assert {path.stem for path in tmp_path.glob("*.png")} == pictures
    stamp = json.loads((tmp_path / "stamp.json").read_text())
    assert {"command", "cpu", "cores", "threads", "torch", "commit", "compiled kernels"} <= stamp.keys()
    if command is conv:
        assert set(table.loc[table["variant"] == "bottleneck", "layer"]) == {"3x3 4->6 @5 s2"}
