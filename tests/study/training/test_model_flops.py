"""FLOPs of structured products equal those done by hand, and torch's own where a network is dense."""

import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from subspace import Key, budgets, recipes, register, share, structured
from subspace.embeddings import Gaussian, Sparse
from subspace.offsets import DCT, Zero
from subspace.study import models
from subspace.study.training import costs as accounting
from subspace.study.training.costs import Meter, computed, computed_forward, flops, reads, transform

IMAGES = torch.from_numpy(Key(0).normal(8 * 784, dtype="float32")).reshape(8, 1, 28, 28)
LABELS = torch.arange(8)
NET = models.lenet5(Key(0))
# Its (m, n, positions) of every weight, and whether its input needs a gradient.
LENET = [(6, 25, 784, 0), (16, 150, 100, 1), (120, 400, 1, 1), (82, 120, 1, 1), (10, 82, 1, 1)]


def lenet(recipe, **options):
    return recipe(models.lenet5(Key(0)), **options)


def tiny():
    """(1, 4, 4) -> 2 channels of 2 x 2 -> 3 logits; 18 and 24 weights, the first at 4 positions."""
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3, bias=False))


def torch_counts(net, images):
    with FlopCounterMode(display=False) as forward:
        value = net(images).sum()
    with FlopCounterMode(display=False) as backward:
        value.backward()
    return forward.get_total_flops() / len(images), backward.get_total_flops() / len(images)


@pytest.mark.parametrize(
    ("net", "images"),
    [
        (NET, IMAGES),
        (lenet(recipes.ordinary), IMAGES),
        (tiny(), torch.ones(2, 1, 4, 4)),
        (
            nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(6, 2, (1, 3))),
            torch.ones(3, 4, 9, 7),
        ),
    ],
    ids=["LeNet-5", "d = 0 and U = identity", "tiny", "strides and padding"],
)
def test_a_dense_network_counts_as_torch_counts_it(net, images):
    counted = flops(net, images[:1])
    forward, backward = torch_counts(net, images)
    assert counted.forward == forward
    assert counted.to_input + counted.to_theta == backward
    assert counted.dense == counted.to_theta
    assert counted.step == 0


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_grouped_convolution_counts_as_many_smaller_ones(kind):
    net, images = kind(4, 6, 3, groups=2), torch.ones(1, 4, 5, 4)
    halves = [kind(2, 3, 3), kind(2, 3, 3)]
    once = sum(sum(torch_counts(half, images[:, :2])) for half in halves)
    assert flops(net, images).training == computed(net, lambda net: net(images).sum(), 1) == once
    inner = nn.Sequential(nn.Conv2d(4, 4, 1), net)  # which needs the gradient to its input as well
    twice = computed(inner, lambda net: net(images).sum(), 1)
    assert flops(inner, images).training == twice == 2 * 2 * 16 * 20 + 3 * once / 2


def test_positions_and_gradients_are_those_of_lenet5():
    found = [(r.shape[0], r.shape[1:].numel(), r.positions, r.differentiated) for r in reads(NET, IMAGES)]
    assert found == LENET
    dense = flops(NET, IMAGES)
    assert dense.forward == 2 * (150 * 784 + 2400 * 100 + 48_000 + 9_840 + 820) == 832_520
    assert dense.training == 3 * 832_520 - 2 * 150 * 784 == 2_262_360


def test_a_sparse_network_counts_two_flops_an_entry_and_position():
    net = lenet(recipes.random_pruning, dim=600, budget=budgets.epl)  # 120 entries in each tensor
    counted = flops(net, IMAGES[:1])
    assert counted.forward == counted.to_theta == 2 * 120 * (784 + 100 + 3)
    assert counted.to_input == 2 * 120 * (100 + 3)
    assert counted.growth == counted.forward + counted.to_input + 832_520
    assert counted.step == 0


def test_dctps_counts_its_transforms_and_alpha():
    counted = flops(lenet(recipes.dctps, dim=50, budget=budgets.epl), IMAGES[:1])  # 10 entries in each tensor
    forward = to_input = to_theta = 0.0
    for m, n, positions, differentiated in LENET:
        q = max(m, n)
        fft = 2.5 * q * math.log2(q) + 6 * (q // 2 + 1)
        forward += positions * (fft + m + m + 2 * 10)  # the transform, its sum with S x, alpha, S x
        to_input += differentiated * positions * (fft + n + m + 2 * 10)
        to_theta += positions * (2 * m + 2 * 10)
    assert counted.forward == pytest.approx(forward)
    assert counted.to_input == pytest.approx(to_input)
    assert counted.to_theta == pytest.approx(to_theta)


def test_dense_offsets_and_embeddings_have_w_built():
    frozen = flops(lenet(recipes.freezenet, dim=50, budget=budgets.epl), IMAGES[:1])
    assert (frozen.forward, frozen.to_input) == (832_520, 832_520 - 2 * 150 * 784)
    assert frozen.to_theta == 2 * 10 * (784 + 100 + 3)
    assert frozen.step == 50
    dense = flops(lenet(recipes.random_subspace, dim=7), IMAGES[:1])
    assert (dense.training, dense.step) == (2_262_360, 2 * 2 * 61_210 * 7)


def test_parts_add_up_in_a_tiny_network():
    net = tiny()
    register(net[0], "weight", DCT(net[0].weight), Sparse(net[0].weight, index=torch.tensor([0, 5, 17])))
    register(net[2], "weight", Zero(net[2].weight), Gaussian(net[2].weight, 4, key=Key(0)))
    counted = flops(net, torch.ones(1, 1, 4, 4))
    nine = 2.5 * 9 * math.log2(9) + 6 * 5
    assert counted.forward == pytest.approx(4 * (nine + 2 + 2 * 3) + 2 * 24)
    assert counted.to_input == 2 * 24
    assert counted.to_theta == 4 * 2 * 3 + 2 * 24
    assert counted.step == 2 * 2 * 24 * 4
    assert counted.dense == 4 * 2 * 18 + 2 * 24
    assert transform(9) == pytest.approx(nine)


def test_counting_leaves_the_network_as_it_is():
    net = nn.Sequential(nn.BatchNorm2d(1), recipes.random_pruning(tiny(), density=0.5))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    flops(net, torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(module.training for module in net.modules())
    assert not any(module._forward_hooks for module in net.modules() if isinstance(module, nn.Conv2d | nn.Linear))


def test_a_shared_theta_costs_at_every_tensor():
    def net():
        return nn.Sequential(nn.Linear(4, 5, bias=False), nn.Linear(5, 4, bias=False))

    own, shared = net(), net()
    for module in (*own, *shared):
        register(module, "weight", Zero(module.weight), Gaussian(module.weight, 3, key=Key(0)))
    share(shared, nn.Parameter(torch.ones(3)))
    assert flops(shared, torch.ones(1, 4)) == flops(own, torch.ones(1, 4))


class Attention(nn.Module):
    """Tokens (b, 5, 8) -> logits (b, 3), by way of a Linear layer on either side."""

    def __init__(self):
        super().__init__()
        self.into = nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, x):
        x = self.into(x)
        return self.out(self.attention(x, x, x, need_weights=self.training)[0].mean(1))


TOKENS = torch.from_numpy(Key(1).normal(4 * 40, dtype="float32")).reshape(4, 5, 8)


def test_attention_counts_by_hand_what_is_beside_the_layers():
    counted = flops(Attention(), TOKENS)
    layers = 2 * 5 * 64, 2 * 24
    attention = 2 * 5 * 192 + 2 * 5 * 64 + 2 * 2 * 2 * 25 * 4  # in, out, q k^T and a v over 2 heads
    assert counted.forward == sum(layers) + attention
    assert counted.to_theta == sum(layers)
    projections = 2 * (2 * 5 * 192 + 2 * 5 * 64)
    backward = counted.to_input - 2 * 24 - projections  # of q k^T and a v, which torch's kernel computes once again
    assert backward in (2 * 2 * 2 * 2 * 25 * 4, 2.5 * 2 * 2 * 2 * 25 * 4)
    assert counted.step == 0


T8 = 2.5 * 8 * 3 + 6 * 5
LAYERS = {  # forward FLOPs of the two layers, the first at 5 positions, with so many entries in each
    "ordinary": lambda first, last: 5 * 128 + 48,
    "random_pruning": lambda first, last: 5 * 2 * first + 2 * last,
    "dctps": lambda first, last: 5 * (T8 + 16 + 2 * first) + T8 + 6 + 2 * last,
    "freezenet": lambda first, last: 5 * 128 + 48,
    "random_subspace": lambda first, last: 5 * 128 + 48,
}


@pytest.mark.parametrize("recipe", LAYERS)
def test_subspaces_of_attention_count_as_torch_counts_them_with_w_built(recipe):
    net = getattr(recipes, recipe)(Attention(), **({} if recipe == "ordinary" else {"dim": 30}))
    plain, counted = flops(Attention(), TOKENS), flops(net, TOKENS)
    assert [read.shape for read in reads(net, TOKENS)] == [(8, 8), (3, 8)]
    first, *_, last = (row["dim"] for row in accounting.tensors(net))
    assert counted.forward == plain.forward - 5 * 128 - 48 + LAYERS[recipe](first, last)
    if recipe == "ordinary":
        assert counted == plain
    if recipe == "random_subspace":  # U theta and U^T of its gradient, a step, in all four tensors
        assert (counted.training, counted.step) == (plain.training, 2 * 2 * (64 + 192 + 64 + 24) * 30)


def test_a_subspace_that_no_product_is_taken_of_counts_nothing():
    net = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2))
    register(net[0], "weight", Zero(net[0].weight), Sparse(net[0].weight, 2, key=Key(0)))
    register(net[1], "bias", Zero(net[1].bias), Sparse(net[1].bias, 1, key=Key(0)))
    assert flops(net, torch.ones(1, 4)) == flops(nn.Linear(4, 2), torch.ones(1, 4, requires_grad=True))


@pytest.mark.parametrize("mode", [True, False])
def test_an_attention_net_without_structure_counts_as_torch_counts_it(mode):
    net = Attention().train(mode)
    counted = flops(net, TOKENS)
    forward, backward = torch_counts(net.eval(), TOKENS)
    assert counted.forward * len(TOKENS) <= computed_forward(net, TOKENS) * len(TOKENS)
    assert counted.forward == computed_forward(net, TOKENS) >= forward
    assert counted.training == computed(net, lambda net: net(TOKENS).sum(), len(TOKENS)) >= forward + backward


def test_a_transposed_convolution_counts_as_torch_counts_it():
    net, images = nn.Sequential(nn.ConvTranspose2d(2, 3, 2, stride=2), nn.Conv2d(3, 1, 1)), torch.ones(2, 2, 4, 4)
    counted = flops(net, images)
    assert counted.forward == 2 * (2 * 3 * 4) * 16 + 2 * 3 * 64
    assert counted.training == sum(torch_counts(net, images))


def test_the_same_count_with_structured_layers_and_with_plain_ones():
    net = lenet(recipes.dctps, dim=50, budget=budgets.epl)
    assert flops(net, IMAGES[:1]) == flops(structured(net), IMAGES[:1])


@pytest.mark.parametrize("native", [False, True])
def test_an_lstm_counts_two_products_a_gate_and_step_whoever_computes_it(native):
    net, x = nn.LSTM(7, 5, num_layers=2, batch_first=True), torch.zeros(3, 11, 7, requires_grad=True)
    products = 2 * 3 * 11 * 4 * 5 * (7 + 5 + 5 + 5)
    first = 2 * 3 * 2 * 4 * 5 * 5  # torch's own has no gradient of a state that is 0, in two layers
    with torch.backends.mkldnn.flags(enabled=native), Meter() as forward:
        y = net(x)[0].sum()
    with Meter() as backward:
        y.backward()
    assert (forward.flops, backward.flops) == (products, 2 * products - (0 if native else first))
