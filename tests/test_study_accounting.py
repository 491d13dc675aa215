"""Counts of FLOPs and bytes equal those done by hand, and torch's own where a network is dense."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from subspace import Key, budgets, methods, recipes, register
from subspace.embeddings import Gaussian, Sparse
from subspace.offsets import DCT, Zero
from subspace.study import models
from subspace.study.accounting import Meter, computed, flops, reads, stored, transform

IMAGES = torch.from_numpy(Key(0).normal(8 * 784, dtype="float32")).reshape(8, 1, 28, 28)
LABELS = torch.arange(8)
NET = models.lenet5(Key(0))
# Its (m, n, positions) of every weight, and whether its input needs a gradient.
LENET = [(6, 25, 784, 0), (16, 150, 100, 1), (120, 400, 1, 1), (82, 120, 1, 1), (10, 82, 1, 1)]


def loss(net):
    return cross_entropy(net(IMAGES), LABELS)


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


def test_a_grouped_convolution_counts_its_own_inputs():
    net, images = nn.Conv2d(4, 6, 3, groups=2), torch.ones(1, 4, 5, 4)
    counted = flops(net, images)
    assert counted.forward == counted.to_theta == 2 * 6 * 2 * 9 * 6
    assert counted.forward == torch_counts(net, images)[0]  # torch counts its gradient once per group too many


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


def test_a_subspace_that_cannot_be_counted_is_named():
    net = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2))
    register(net[0], "weight", Zero(net[0].weight), Sparse(net[0].weight, 2, key=Key(0)))
    register(net[1], "bias", Zero(net[1].bias), Sparse(net[1].bias, 1, key=Key(0)))
    with pytest.raises(
        TypeError, match=r"FLOPs are counted of the weights of linear layers and convolutions, got 0.weight, 1.bias$"
    ):
        flops(net, torch.ones(1, 4))


def test_what_plain_layers_compute_is_dense_and_includes_u_theta():
    assert computed(lenet(recipes.random_pruning, density=0.01), loss, 8) == 2_262_360
    assert computed(lenet(recipes.random_subspace, dim=7), loss, 8) == 2_262_360 + 2 * 2 * 61_210 * 7 / 8


def test_choosing_by_snip_costs_a_forward_and_a_backward_pass_and_synflow_one_a_round():
    with Meter() as snip:
        lenet(recipes.snip, objective=loss, density=0.1)
    assert snip.flops == 8 * 2_262_360
    with Meter() as synflow:
        lenet(recipes.synflow, objective=methods.flow(1, 1, 28, 28), density=0.1, steps=3)
    assert synflow.flops == 3 * 2_262_360
    with Meter() as random:
        lenet(recipes.random_pruning, density=0.1)
        lenet(recipes.magnitude, density=0.1)
    assert random.flops == 0


def test_a_meter_counts_only_while_it_is_not_paused():
    a = torch.ones(3, 4)
    with Meter() as meter:
        a @ a.T
        with meter.paused():
            a @ a.T
        torch.mv(a, a[0])
    a @ a.T
    assert meter.flops == 2 * 3 * 4 * 3 + 2 * 3 * 4


def test_stored_bytes_are_those_of_dense_weights_theta_and_a_chosen_index():
    assert stored(models.lenet5(Key(0))) == stored(lenet(recipes.ordinary)) == 4 * 61_210
    assert stored(lenet(recipes.random_pruning, dim=600)) == 4 * 600
    assert stored(lenet(recipes.magnitude, dim=600)) == (4 + 4) * 600
