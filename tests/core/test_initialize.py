"""A model on the meta device is registered, and comes off it, as a real one starts; no dense weight is ever there."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from scipy import stats
from torch import nn

from subspace import Key, initialize, load, methods, recipes, register, save, share, subspaces, summary
from subspace.embeddings import Gaussian, Identity, Sparse
from subspace.methods import groups
from subspace.offsets import DCT, Pretrained, Zero

pytestmark = pytest.mark.filterwarnings("ignore:the budget of")


def net() -> nn.Module:
    return nn.ModuleDict(
        {
            "conv": nn.Conv2d(2, 8, 3),
            "norm": nn.BatchNorm2d(8),
            "still": nn.BatchNorm1d(8, affine=False),
            "depthwise": nn.Conv2d(8, 8, 3, groups=8, bias=False),
            "attention": nn.MultiheadAttention(8, 2),
            "recurrent": nn.GRU(8, 8),
            "table": nn.Embedding(5, 8, padding_idx=0),
            "head": nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 5)),
        }
    )


def on_meta(make=net) -> nn.Module:
    with torch.device("meta"):
        return make()


KEYED = {  # their starts do not depend on the weights
    "dctps": lambda m: recipes.dctps(m, density=0.2, seed=3),
    "dctps-full": lambda m: recipes.dctps(m, density=1.0),
    "dctps-rows": lambda m: recipes.dctps(m, density=0.2, groups=groups.rows),
    "dctps-rigl": lambda m: recipes.dctps_rigl(m, density=0.2),
    "dctps-set": lambda m: recipes.dctps_set(m, density=0.2),
    "freezenet": lambda m: recipes.freezenet(m, density=0.2),
    "random-subspace": lambda m: recipes.random_subspace(m, dim=20),
}
KEPT = {
    "random-pruning": lambda m: recipes.random_pruning(m, density=0.2),
    "rigl": lambda m: recipes.rigl(m, density=0.2),
    "set": lambda m: recipes.set(m, density=0.2),
    "ordinary": lambda m: recipes.ordinary(m),
}
EVERY = KEYED | KEPT
each_recipe = pytest.mark.parametrize("recipe", EVERY.values(), ids=EVERY)


@pytest.mark.parametrize("recipe", KEYED.values(), ids=KEYED)
def test_the_start_is_that_of_a_real_model(recipe):
    real, meta = recipe(net()), initialize(recipe(on_meta()), seed=1)
    for (name, one), (_, other) in zip(subspaces(real), subspaces(meta), strict=True):
        assert torch.equal(one.theta, other.theta), name
        assert torch.equal(getattr(one.module, one.name), getattr(other.module, other.name)), name
    same_but_for_values(real, meta)


def same_but_for_values(real, meta):
    one, other = real.state_dict(keep_vars=True), meta.state_dict(keep_vars=True)
    assert {name: about(tensor) for name, tensor in one.items()} == {name: about(t) for name, t in other.items()}
    for name, tensor in one.items():
        assert not name.endswith(("index", "scale")) or torch.equal(other[name], tensor), name
    assert str(summary(real)) == str(summary(meta))
    assert [id(a) == id(b) for a in thetas(real) for b in thetas(real)] == [
        id(a) == id(b) for a in thetas(meta) for b in thetas(meta)
    ]


def about(tensor):
    return type(tensor), tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad


def thetas(model):
    return [space.theta for _, space in subspaces(model)]


@pytest.mark.parametrize("recipe", KEPT.values(), ids=KEPT)
def test_kept_weights_are_drawn_as_their_module_draws_them(recipe):
    def make():
        attention, recurrent = nn.MultiheadAttention(60, 3), nn.RNN(40, 50)
        return nn.Sequential(nn.Linear(300, 200), nn.Conv2d(20, 30, 3, groups=2), attention, recurrent)

    real, meta = recipe(make()), initialize(recipe(on_meta(make)))
    same_but_for_values(real, meta)
    bounds = (300**-0.5, 90**-0.5, (6 / 240) ** 0.5, 60**-0.5, 50**-0.5, 50**-0.5)
    for bound, (_, one), (_, other) in zip(bounds, subspaces(real), subspaces(meta), strict=True):
        for theta in (one.theta, other.theta):  # Kaiming's with a = 5^1/2, and Xavier's
            assert stats.kstest(theta.detach(), stats.uniform(-bound, 2 * bound).cdf).pvalue > 1e-3


@each_recipe
def test_the_seed_and_the_names_decide_and_the_global_generator_does_not(recipe):
    states = []
    for seed, of_torch in ((0, 0), (0, 1), (1, 0)):
        torch.manual_seed(of_torch)
        before = torch.get_rng_state()
        states.append(initialize(recipe(on_meta()), seed=seed).state_dict())
        assert torch.equal(before, torch.get_rng_state())
    one, same, other = states
    assert all(map(torch.equal, one.values(), same.values()))
    drawn = {"conv.bias", "table.weight", "recurrent.bias_ih_l0", "head.1.bias"}
    assert not any(torch.equal(one[name], other[name]) for name in drawn)
    whole = initialize(recipe(on_meta()), seed=0)
    assert torch.equal(whole["head"][1].bias, one["head.1.bias"])


@pytest.mark.parametrize("include", [None, ["conv"]])
def test_what_is_not_theta_is_set_by_its_module(include):
    model = initialize(recipes.dctps(on_meta(), density=0.2, include=include))
    state = model.state_dict()
    for name in ("norm.weight", "head.0.weight", "norm.running_var", "still.running_var"):
        assert (state[name] == 1).all(), name
    for name in ("norm.bias", "norm.running_mean", "still.running_mean", "attention.in_proj_bias"):
        assert (state[name] == 0).all(), name
    assert state["norm.num_batches_tracked"] == 0
    assert (state["attention.out_proj.bias"] == 0).all()  # set by the attention, after its Linear has drawn it
    assert (state["table.weight"][0] == 0).all()
    assert 0.5 < state["table.weight"][1:].std() < 2
    for name, bound in (("conv.bias", 18**-0.5), ("head.1.bias", 8**-0.5), ("recurrent.bias_hh_l0", 8**-0.5)):
        assert bound / 2 < state[name].abs().max() <= bound, name


@each_recipe
def test_it_trains(recipe):
    def make():
        return nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(216, 3))

    model = initialize(recipe(on_meta(make)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [theta.detach().clone() for theta in thetas(model)]
    model(torch.ones(2, 1, 8, 8).cumsum(3)).tanh().sum().backward()
    optimizer.step()
    assert not any(map(torch.equal, thetas(model), before))


@each_recipe
def test_a_checkpoint_is_loaded_onto_meta(recipe, tmp_path):
    model = initialize(recipe(on_meta()))
    save(model, tmp_path / "c")
    empty = on_meta()
    again = load(empty, tmp_path / "c")
    assert again is empty
    same_but_for_values(model, again)
    assert all(map(torch.equal, model.state_dict().values(), again.state_dict().values()))


def test_what_is_real_stays():
    model = on_meta()
    model["head"] = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 5))
    real = copy.deepcopy(model["head"][1].bias)
    recipes.random_pruning(model["head"], density=0.5)
    theta = thetas(model)[0]
    values = theta.detach().clone()
    recipes.dctps(model, density=0.2, include=["conv"])
    initialize(model)
    assert thetas(model)[1] is theta
    assert torch.equal(theta, values)
    assert torch.equal(model["head"][1].bias, real)
    assert not any(tensor.is_meta for tensor in model.state_dict().values())


def test_ties_stay():
    def make():
        model = nn.ModuleList([nn.Embedding(4, 6), nn.Linear(6, 4), nn.Linear(6, 4)])
        model[1].bias = model[2].bias
        return model

    model = on_meta(make)
    for layer in model[1:]:
        w = layer.weight
        register(layer, "weight", DCT(w), Sparse(w, 5, key=Key(0)), torch.full((5,), 2.0))
    share(model, nn.Parameter(torch.zeros(5, device="meta")))
    initialize(model)
    assert model[1].bias is model[2].bias
    one, other = thetas(model)
    assert one is other
    assert one.tolist() == [2.0] * 5


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, 4))
        self.register_buffer("mask", torch.zeros(3, dtype=torch.bool), persistent=False)


class Forgets(Bare):
    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)


class Orthogonal(nn.Linear):
    def reset_parameters(self) -> None:
        nn.init.orthogonal_(self.weight)
        nn.init.zeros_(self.bias)


class Ones(nn.Linear):
    def reset_parameters(self) -> None:
        self.weight.data.copy_(torch.ones(self.weight.shape))


def registered(module, offset, embedding, theta=None):
    w = module.weight
    register(module, "weight", offset(w), embedding(w), theta)
    return module


NO_RULE = {
    "a.weight must be set by Bare.reset_parameters, got none": Bare,
    "a.mask must be set by Forgets.reset_parameters, got one that does not": Forgets,
    "a.weight must be set by Orthogonal.reset_parameters, got one that is not known here": lambda: registered(
        Orthogonal(3, 4), Zero, Identity
    ),
    "a.bias must be set by Ones.reset_parameters, got one that is not known here": lambda: registered(
        Ones(3, 4), DCT, lambda w: Sparse(w, 2, key=Key(0)), torch.ones(2, device="cpu")
    ),
    r"a.weight must be registered with a theta that has values, got none for DCT and Sparse": lambda: registered(
        nn.Linear(3, 4), DCT, lambda w: Sparse(w, 2, key=Key(0))
    ),
    r"a.weight must be registered with a theta that has values, got none for Zero and Gaussian": lambda: registered(
        nn.Linear(3, 4), Zero, lambda w: Gaussian(w, 2, key=Key(0)), torch.zeros(2, device="meta")
    ),
}


@pytest.mark.parametrize("error", NO_RULE)
def test_what_nothing_sets_is_named_and_the_model_is_as_it_was(error):
    model = on_meta(lambda: nn.ModuleDict({"fine": nn.Linear(3, 3), "a": NO_RULE[error]()}))
    before = {name: id(t) for name, t in model.named_parameters()}
    generator = torch.get_rng_state()
    with pytest.raises(ValueError, match=error) as raised:
        initialize(model)
    assert "\n" not in str(raised.value)
    assert {name: id(t) for name, t in model.named_parameters()} == before
    assert all(p.is_meta for p in model.parameters())
    assert torch.equal(generator, torch.get_rng_state())


def objective(model):
    return sum(p.sum() for p in model.parameters())


VALUED = {
    "sparse_finetuning": lambda m: recipes.sparse_finetuning(m, density=0.2),
    "magnitude": lambda m: recipes.magnitude(m, density=0.2),
    "snip": lambda m: recipes.snip(m, objective, density=0.2),
    "force": lambda m: recipes.force(m, objective, density=0.2),
    "grasp": lambda m: recipes.grasp(m, objective, density=0.2),
    "synflow": lambda m: recipes.synflow(m, objective, density=0.2),
    "imp": lambda m: recipes.imp(m, lambda _: None, density=0.2),
    "dctps": lambda m: recipes.dctps(m, density=0.2, objective=objective),
    "freezenet": lambda m: recipes.freezenet(m, density=0.2, objective=objective),
    "scores": methods.magnitude,
    "pretrained": lambda m: Pretrained(m["conv"].weight),
}


@pytest.mark.parametrize("recipe", VALUED.values(), ids=VALUED)
def test_what_needs_the_weights_values_says_so(recipe):
    model = on_meta()
    with pytest.raises(
        ValueError, match="(conv.weight|weights) must have values.*, got .* on the meta device"
    ) as raised:
        recipe(model)
    assert "\n" not in str(raised.value)
    assert not list(subspaces(model))


def test_a_checkpoint_that_lacks_a_value_is_not_loaded_onto_meta(tmp_path):
    def make():
        return nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 3).requires_grad_(False), Bare()])

    save(recipes.dctps(make(), density=0.2, include=["0"]), tmp_path / "c")
    for fine, name in (([], "1.weight"), ([1], "2.mask")):
        model = on_meta(make)
        for i in fine:
            model[i] = nn.Linear(8, 3)
        with pytest.raises(ValueError, match=f"{name} must have values, which no checkpoint holds, got a tensor on"):
            load(model, tmp_path / "c")
        assert model[0].weight.is_meta
    save(recipes.dctps(make(), density=0.3, include=["0"]), tmp_path / "c")


def test_a_failed_load_leaves_the_model_on_meta(tmp_path):
    save(recipes.dctps(net(), density=0.2), tmp_path / "c")
    model = on_meta()
    model["head"][1] = nn.Linear(8, 6)
    before = {name: id(t) for name, t in model.state_dict(keep_vars=True).items()}
    with pytest.raises(ValueError, match="must"):
        load(model, tmp_path / "c")
    assert {name: id(t) for name, t in model.state_dict(keep_vars=True).items()} == before


BILLION = """
import re
import sys
import torch
import subspace

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1000

def mlp():
    with torch.device("meta"):
        return torch.nn.Sequential(*(torch.nn.Linear(1 << 14, 1 << 14) for _ in range(4)))

torch.set_num_threads(1)
before = peak()
for recipe in (subspace.recipes.dctps, subspace.recipes.random_pruning):
    model = subspace.initialize(recipe(mlp(), density=1e-4))
    assert subspace.summary(model).weights == 1 << 30
    subspace.save(model, sys.argv[1])
    again = subspace.load(mlp(), sys.argv[1])
    assert all(map(torch.equal, model.state_dict().values(), again.state_dict().values()))
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="no /proc")
def test_a_billion_weights_start_and_are_saved_and_loaded_in_little_memory(tmp_path):
    command = [sys.executable, "-c", BILLION, str(tmp_path / "c")]
    assert float(subprocess.check_output(command, text=True)) < 300
