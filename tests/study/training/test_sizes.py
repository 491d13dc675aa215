"""What is computed, stored and written to files equals what is done by hand; counting it disturbs nothing."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy

import subspace
from subspace import Key, budgets, methods, recipes, register, structured
from subspace.embeddings import Direction, Scaled
from subspace.offsets import DCT, Zero
from subspace.study import models
from subspace.study.training import costs as accounting
from subspace.study.training.costs import Meter, computed, computed_forward, flops, stored

IMAGES = torch.from_numpy(Key(0).normal(8 * 784, dtype="float32")).reshape(8, 1, 28, 28)
LABELS = torch.arange(8)


def loss(net):
    return cross_entropy(net(IMAGES), LABELS)


def lenet(recipe, **options):
    return recipe(models.lenet5(Key(0)), **options)


def tiny():
    """(1, 4, 4) -> 2 channels of 2 x 2 -> 3 logits; 18 and 24 weights, the first at 4 positions."""
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3, bias=False))


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
    assert 4 * 600 < stored(lenet(recipes.magnitude, dim=600)) < 4.9 * 600  # the places in less than 7 bits each


def everything():
    """A layer of every kind that recipes take, and some that they do not."""
    return nn.ModuleList(
        [
            *(make(2, 4, 3) for make in (nn.Conv1d, nn.Conv2d, nn.Conv3d)),
            *(make(2, 4, 3) for make in (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)),
            nn.Linear(3, 4),
            nn.Bilinear(2, 3, 4),
            nn.MultiheadAttention(4, 2),
            nn.MultiheadAttention(4, 2, kdim=3, vdim=5),
            nn.BatchNorm1d(3),
            nn.Embedding(5, 2),
        ]
    )


def test_what_is_stored_is_of_those_tensors_that_recipes_take_before_and_after():
    taken = recipes.ordinary(everything())
    assert stored(everything()) == stored(taken) == 4 * subspace.summary(taken).weights
    some = recipes.random_pruning(everything(), dim=50, exclude=["3", "8"])
    left = sum(everything().get_parameter(name).numel() for name in ("3.weight", "8.in_proj_weight"))
    assert stored(some) == 4 * (50 + left)


def test_frozen_weights_are_not_stored():
    net = tiny()
    net[0].weight.requires_grad_(False)
    assert stored(net) == 4 * 24


@pytest.mark.parametrize("recipe", [recipes.ordinary, recipes.dctps, recipes.random_subspace])
def test_file_bytes_are_those_of_real_files(recipe, tmp_path):
    net = nn.Sequential(tiny(), nn.BatchNorm1d(3))
    net = recipe(net, **({} if recipe is recipes.ordinary else {"dim": 12}))
    subspace.save(net, tmp_path / "ours")
    assert accounting.file_bytes(structured(net)) == os.path.getsize(tmp_path / "ours")
    dense = {name: tensor.contiguous() for name, tensor in subspace.materialize(net).state_dict().items()}
    save_file(dense, tmp_path / "dense")
    assert accounting.file_bytes_dense(net) == os.path.getsize(tmp_path / "dense")
    assert accounting.file_bytes_dense(net) > 4 * (18 + 2 + 24 + 4 * 3) + 8


def test_a_plain_network_has_the_file_of_a_dense_one():
    assert (
        accounting.file_bytes(tiny())
        == accounting.file_bytes_dense(tiny())
        == accounting.file_bytes_dense(recipes.dctps(tiny(), dim=5))
    )


def test_tied_and_channels_last_tensors_have_files_too():
    net = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Linear(2, 2), nn.Linear(2, 2)).to(memory_format=torch.channels_last)
    net[2].weight = net[1].weight
    recipes.random_pruning(net, dim=2, include=["0"])
    assert 0 < accounting.file_bytes_dense(net) - 4 * (4 + 2 + 4 + 2 + 2) < 500


def test_tensors_are_listed_with_what_moves_them():
    rows = accounting.tensors(recipes.dctps(tiny(), dim=14, budget=budgets.epl))
    first = {"name": "0.weight", "shape": [2, 1, 3, 3], "offset": "DCT", "embedding": "Direction(DCT) + Sparse"}
    assert rows[0] == {**first, "numel": 18, "dim": 7, "density": 7 / 18}
    assert [row["dim"] for row in rows] == [7, 7]
    assert json.loads(json.dumps(rows)) == rows
    shared = accounting.tensors(recipes.random_subspace(tiny(), dim=5))
    assert [(row["dim"], row["density"]) for row in shared] == [(5, 5 / 18), (5, 5 / 24)]
    assert accounting.tensors(tiny()) == []
    scaled = nn.Linear(4, 4)
    register(scaled, "weight", Zero(scaled.weight), Scaled(Direction(DCT(scaled.weight)), torch.ones(1)))
    assert accounting.tensors(scaled)[0]["dim"] == subspace.summary(scaled).dim - subspace.summary(scaled).alpha


def test_counting_moves_no_buffer_generator_mode_or_gradient():
    net = nn.Sequential(recipes.dctps(tiny(), dim=10), nn.BatchNorm1d(3), nn.Dropout())
    structured(net)
    before, state = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    inputs = torch.from_numpy(Key(2).normal(4 * 16, dtype="float32")).reshape(4, 1, 4, 4)
    flops(net, inputs), computed(net, lambda net: net(inputs).sum(), 4), computed_forward(net, inputs)
    accounting.file_bytes(net), accounting.file_bytes_dense(net), accounting.tensors(net), stored(net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in net.modules())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_activations_are_what_layers_keep_for_the_backward_pass_each_once():
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 5), nn.Sigmoid(), nn.Linear(5, 3))
    x = torch.randn(4, 6)
    kept = [4 * 6, 4 * 5, 4 * 5]  # of the linear layers their inputs, which ReLU and Sigmoid keep as their outputs too
    assert accounting.activation_bytes(net, lambda net: net(x.clone()).sum()) == 4 * sum(kept)
    assert accounting.activation_bytes(net, lambda net: net(x).sum()) == 4 * sum(kept[1:])  # x is there anyway


def test_a_weight_that_a_pass_builds_is_kept_and_a_structured_one_is_not_built():
    def loss(net):
        return net(torch.ones(2, 500)).sum()

    net = recipes.dctps(nn.Sequential(nn.Linear(500, 400, bias=False)), density=0.01)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    built = accounting.activation_bytes(net, lambda net: loss(net) + net[0].weight.square().sum())
    assert built >= 4 * 500 * 400
    assert accounting.activation_bytes(structured(net), loss) < 4 * 500 * 400 / 4
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_batch_norms_count_as_in_training_and_are_left_as_they_were():
    net = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2)).eval()
    before = net[1].running_mean.clone()
    found = accounting.activation_bytes(net, lambda net: net(IMAGES).sum())
    output = 8 * 2 * 26 * 26
    assert 4 * output <= found <= 4 * (output + 8)
    assert torch.equal(net[1].running_mean, before)
    assert not net.training


def test_a_sparse_tensor_that_is_saved_counts_with_its_places():
    places, x = torch.tensor([[0, 2], [1, 0]]), torch.ones(3, 4)
    net = nn.ParameterDict({"theta": nn.Parameter(torch.ones(2))})

    def loss(net):
        return torch.sparse.mm(torch.sparse_coo_tensor(places.clone(), 2 * net["theta"], (3, 3)), x).sum()

    assert accounting.activation_bytes(net, loss) >= 2 * 2 * 8 + 2 * 4
