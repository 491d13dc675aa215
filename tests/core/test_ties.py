"""Tied tensors are one: registered once, read by all who own them, once in a state_dict and in a file."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from subspace import (
    Key,
    embeddings,
    initialize,
    load,
    materialize,
    methods,
    recipes,
    register,
    save,
    structured,
    subspaces,
    summary,
    targets,
)
from subspace.embeddings import Sparse
from subspace.offsets import Pretrained

TOKENS = torch.tensor([[1, 5, 3], [0, 2, 4]])


class TiedTable(nn.Embedding):
    """A user's own, of a name that might be the package's."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return 3 * super().forward(tokens)


class Language(nn.Module):
    """An embedding table that is the head's weight."""

    def __init__(self, head_first: bool = False) -> None:
        super().__init__()
        if head_first:
            self.head = nn.Linear(16, 20, bias=False)
        self.table, self.layer = TiedTable(20, 16), nn.Linear(16, 16)
        if not head_first:
            self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.layer(self.table(tokens))))


RECIPES = {
    "dctps": lambda m: recipes.dctps(m, density=0.1),
    "sparse-finetuning": lambda m: recipes.sparse_finetuning(m, density=0.1),
    "random-pruning": lambda m: recipes.random_pruning(m, density=0.5),
    "random-subspace": lambda m: recipes.random_subspace(m, dim=9),
    "ordinary": recipes.ordinary,
    "snip": lambda m: recipes.snip(m, lambda net: net(TOKENS).square().sum(), density=0.5),
    "synflow": lambda m: recipes.synflow(m, lambda net: net(TOKENS).sum(), density=0.5, steps=2),
    "dctps-by-gradient": lambda m: recipes.dctps(m, density=0.1, objective=lambda net: net(TOKENS).square().sum()),
    "everything": lambda m: recipes.dctps(m, density=0.1, include=lambda name, w: w.ndim == 2),
}
each_recipe = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)


def model(head_first=False):
    torch.manual_seed(0)
    return Language(head_first)


def moved(net):
    for theta in {id(s.theta): s.theta for _, s in subspaces(net)}.values():
        theta.data += 0.1
    return net


@each_recipe
@pytest.mark.parametrize("head_first", [False, True])
def test_both_owners_read_one_weight(recipe, head_first):
    net = moved(recipe(model(head_first)))
    assert [name for name, _ in subspaces(net) if name != "layer.weight"] == ["head.weight"]
    torch.testing.assert_close(net.table.weight, net.head.weight)
    net.table.weight.sum().backward()
    assert net.head.parametrizations.weight.original.grad.abs().sum() > 0
    assert "table.weight" in {left.name for left in summary(net).left_out if left.why == "tied to head.weight"}
    assert summary(net).weights == 16 * 20 + 16 * 16


@each_recipe
def test_other_models_of_the_same_classes_are_as_they_were(recipe):
    other = model()
    y = other(TOKENS)
    materialize(copy.deepcopy(recipe(model())))
    assert torch.equal(other(TOKENS), y)


@each_recipe
def test_theta_is_there_once(recipe):
    net = recipe(model())
    names = [name for name, _ in net.named_parameters(remove_duplicate=False)]
    assert not [name for name in [*names, *net.state_dict()] if name.startswith("table")]


@each_recipe
def test_copies_pickles_and_dense_models_are_tied_as_well(recipe):
    net = moved(recipe(model()))
    y = net(TOKENS)
    again = copy.deepcopy(net)
    moved(again)
    torch.testing.assert_close(again.table.weight, again.head.weight)
    torch.testing.assert_close(net(TOKENS), y)
    pickled = pickle.loads(pickle.dumps(net))
    torch.testing.assert_close(pickled(TOKENS), y)
    torch.testing.assert_close(moved(pickled).table.weight, pickled.head.weight)
    dense = materialize(net)
    assert dense.table.weight is dense.head.weight
    assert type(dense.table) is TiedTable
    torch.testing.assert_close(dense(TOKENS), y)
    torch.testing.assert_close(pickle.loads(pickle.dumps(dense))(TOKENS), y)
    torch.testing.assert_close(structured(net)(TOKENS), y, rtol=1e-4, atol=1e-5)


@each_recipe
def test_a_file_holds_it_once_and_ties_it_again(recipe, tmp_path):
    net = moved(recipe(model()))
    save(net, tmp_path / "c")
    again = load(model(), tmp_path / "c")
    torch.testing.assert_close(again(TOKENS), net(TOKENS))
    torch.testing.assert_close(again.table.weight, again.head.weight)


@pytest.mark.parametrize("basis", [None, embeddings.DCT])
def test_its_coefficients_are_chosen_as_those_of_a_weight_of_its_own(basis):
    tied, apart = model(), model()
    apart.table.weight = nn.Parameter(apart.table.weight.detach().clone())
    one, other = (methods.supports(net, methods.magnitude, None, 0.1, basis=basis) for net in (tied, apart))
    assert one.keys() == other.keys() >= {"head.weight"}
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_on_the_meta_device_it_is_tied_too():
    with torch.device("meta"):
        net = Language()
    net = initialize(recipes.dctps(net, density=0.1))
    torch.testing.assert_close(net.table.weight, net.head.weight)
    net(TOKENS).sum().backward()


def test_what_is_assigned_to_one_goes_to_both():
    net = recipes.ordinary(model())
    with torch.no_grad():
        net.table.weight = torch.ones(20, 16)
    assert (net.head.weight == 1).all()


def test_register_ties_what_is_tied_in_the_model():
    net = model()
    w = net.table.weight
    register(net.table, "weight", Pretrained(w), Sparse(w, 5, key=Key(0)), torch.ones(5), model=net)
    torch.testing.assert_close(net.table.weight, net.head.weight)


class Pair(nn.Module):
    """Two tensors in one module."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.weight = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4, 4))


def test_a_module_has_tied_tensors_or_subspaces_and_not_both():
    net = nn.ModuleDict({"pair": Pair(), "layer": nn.Linear(4, 4)})
    net["pair"].a = net["layer"].weight
    with pytest.raises(ValueError, match=r"layer.weight must not be tied to a tensor of a module with another chosen"):
        recipes.dctps(net, density=0.3)
    assert not list(subspaces(net))
    recipes.dctps(net, density=0.3, include=["layer.weight"])
    with pytest.raises(ValueError, match="weight must not be of a module with a tied tensor, got one with a"):
        recipes.dctps(net, density=0.3, include=["pair.weight"])
    assert [name for name, _ in subspaces(net)] == ["layer.weight"]


def test_a_recurrent_layer_cannot_be_tied():
    net = nn.ModuleList([nn.RNN(4, 4), nn.Linear(4, 4)])
    net[1].weight = net[0].weight_hh_l0
    assert list(targets(net)) == ["0.weight_ih_l0", "0.weight_hh_l0"]
    with pytest.raises(ValueError, match="weight_hh_l0 must not be tied in a recurrent layer, got a tied one of RNN"):
        recipes.dctps(net, density=0.1, include=["1.weight"], exclude=["0.weight_hh_l0"])
