"""A theta without numbers is no Parameter: no optimizer sees it, and everything else goes on."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from subspace import (
    Key,
    budgets,
    initialize,
    load,
    materialize,
    methods,
    recipes,
    register,
    save,
    share,
    structured,
    subspaces,
    summary,
)
from subspace.embeddings import Sparse
from subspace.offsets import DCT
from tests.support.cases import rest_slow
from tests.support.strategies import numbers

close = torch.testing.assert_close
X, Y = numbers(1, 5, 1, 6, 6).float(), torch.arange(5) % 4


def net() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Flatten(), nn.Linear(96, 12), nn.ReLU(), nn.Linear(12, 4))
    for i, p in enumerate(model.parameters()):
        p.data = 0.3 * numbers(i, *p.shape).float()
    return model


def loss(model: nn.Module) -> torch.Tensor:
    return cross_entropy(model(X), Y)


RECIPES = {
    "random": lambda m: recipes.random_pruning(m, dim=2),
    "freezenet": lambda m: recipes.freezenet(m, dim=2),
    "fine-tuning": lambda m: recipes.sparse_finetuning(m, dim=2),
    "fixed alpha": lambda m: recipes.offset_plus_sparse(lambda w, key: DCT(w), alpha=False)(m, dim=2),
    "collapsed": lambda m: recipes.snip(m, loss, dim=2),
    "rigl": lambda m: recipes.rigl(m, dim=2, budget=budgets.epl),
}
each_recipe = pytest.mark.parametrize("recipe", RECIPES)
pytestmark = pytest.mark.filterwarnings("ignore:.*leaves? no entry")


def emptied(recipe: str) -> nn.Module:
    model = RECIPES[recipe](net())
    assert not all(len(space.theta) for _, space in subspaces(model))
    return model


def check(model: nn.Module) -> None:
    assert all(len(p) for p in model.parameters())
    for _, space in subspaces(model):
        assert len(space.theta) == space.embedding.dim
        assert isinstance(space.theta, nn.Parameter) == (space.embedding.dim > 0)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "fused": lambda p: torch.optim.Adam(p, 0.1, fused=True),
    "foreach": lambda p: torch.optim.AdamW(p, 0.1, foreach=True),
    "adafactor": torch.optim.Adafactor,
    "lbfgs": lambda p: torch.optim.LBFGS(p, 0.1),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("first", rest_slow([True, False], [True]))
@each_recipe
def test_every_optimizer_trains_the_rest(recipe, optimizer, first):
    if first:  # made before the recipe, it holds the weights' own Parameters
        model = net()
        made = OPTIMIZERS[optimizer](list(model.parameters()))
        RECIPES[recipe](model)
    else:
        model = emptied(recipe)
        made = OPTIMIZERS[optimizer](list(model.parameters()))
    check(model)

    def closure():
        made.zero_grad()
        value = loss(model)
        value.backward()
        return value

    before = float(closure().detach())
    for _ in range(3):
        closure()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        made.step(closure)
    assert float(loss(model).detach()) != before


@each_recipe
def test_it_is_counted_stored_copied_and_moved_as_any_other(recipe, tmp_path):
    model = emptied(recipe)
    assert [row.dim for row in summary(model).rows] == [len(space.theta) for _, space in subspaces(model)]
    assert summary(model).dim == sum(len(space.theta) for _, space in subspaces(model)) == 2
    expected = model(X)
    save(model, tmp_path / "c")
    twin = RECIPES[recipe](net())
    twin.load_state_dict(model.state_dict())
    for again in (load(net(), tmp_path / "c"), copy.deepcopy(model), twin, model.double().float()):
        check(again)
        close(again(X), expected)
    dense = materialize(model)
    close(dense(X), expected)
    assert all(dense.get_parameter(name).requires_grad for name, _ in subspaces(model))
    assert not any(p.requires_grad for p in materialize(copy.deepcopy(model).requires_grad_(False)).parameters())


@each_recipe
def test_layers_that_never_build_their_weight_give_the_same_gradients(recipe):
    model = emptied(recipe)
    loss(model).backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    structured(model)
    loss(model).backward()
    for name, gradient in plain.items():
        close(model.get_parameter(name).grad, gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("mover", [methods.SET, methods.RigL])
def test_movers_leave_it_alone(mover):
    model = emptied("rigl")
    optimizer = torch.optim.Adam(model.parameters())
    moving = mover(model, optimizer, t_end=10, delta_t=1, fraction=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
        moving.step(loss)
    check(model)


def test_it_comes_off_the_meta_device():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4))
    model = initialize(recipes.random_pruning(model, dim=1))
    check(model)
    assert model(torch.ones(1, 8)).isfinite().all()


def test_it_cannot_be_shared():
    model = nn.Linear(8, 6)
    w = model.weight
    register(model, "weight", DCT(w), Sparse(w, 0, key=Key(0)))
    check(model)
    with pytest.raises(ValueError, match="theta must have at least one number to be shared, got none"):
        share(model, nn.Parameter(torch.zeros(0)))
    check(model)
