"""Every trained Parameter is in one group, theta is decayed, biases and norms are not."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from subspace import parameter_groups, recipes, structured, subspaces
from tests.support.cases import MODULES
from tests.support.strategies import numbers

X, Y = numbers(1, 6, 1, 6, 6).float(), torch.arange(6) % 4


def net() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(96, 12), nn.LayerNorm((1, 12)), nn.Linear(12, 4)
    )
    model[4] = nn.Sequential(nn.Unflatten(1, (1, 12)), nn.LayerNorm((1, 12)), nn.Flatten())  # a norm of two axes
    return model


def loss(model: nn.Module) -> torch.Tensor:
    return cross_entropy(model(X), Y)


RECIPES = {
    "none": lambda m: m,
    "random": lambda m: recipes.random_pruning(m, density=0.2),
    "dctps": lambda m: recipes.dctps(m, density=0.2),
    "one layer": lambda m: recipes.dctps(m, density=0.2, include=["3"]),
    "shared": lambda m: recipes.random_subspace(m, dim=20),
    "empty": lambda m: recipes.random_pruning(m, dim=1),
    "everything": lambda m: recipes.sparse_finetuning(m, density=0.2, include=lambda name, tensor: True),
}
each_recipe = pytest.mark.parametrize("recipe", RECIPES)
pytestmark = pytest.mark.filterwarnings("ignore:.*leaves? no entry")


def sorted_(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    return {group["name"]: group["params"] for group in parameter_groups(model)}


def check(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    groups = sorted_(model)
    every = [id(p) for group in groups.values() for p in group]
    assert sorted(every) == sorted({id(p) for p in model.parameters() if p.requires_grad})
    assert all(groups.values())
    thetas = {id(space.theta) for _, space in subspaces(model) if len(space.theta) and space.theta.requires_grad}
    assert {id(p) for p in groups.get("theta", [])} == thetas
    assert all(p.ndim == 2 for p in groups.get("matrices", []))
    assert all(p.ndim > 2 for p in groups.get("kernels", []))
    return groups


@each_recipe
def test_every_trained_parameter_is_in_one_group(recipe):
    model = RECIPES[recipe](net())
    names = {name: [p.shape for p in group] for name, group in check(model).items()}
    if any(True for _ in subspaces(model)):
        structured(model)
    assert names == {name: [p.shape for p in group] for name, group in check(model).items()}
    rest = {id(p) for p in sorted_(model).get("rest", [])}
    assert all(id(p) in rest for p in model[1].parameters() if recipe != "everything")
    assert all(id(p) in rest for p in model[4].parameters() if recipe != "everything")
    model[5].requires_grad_(False)
    check(model)


@pytest.mark.parametrize("case", MODULES, ids=lambda case: case.name)
def test_every_module_has_its_groups(case):
    check(case.make())
    check(recipes.random_pruning(case.make(), dim=1, include=[case.tensor]))


OPTIMIZERS = {
    "adamw": lambda g: torch.optim.AdamW(g, 0.01, weight_decay=0.1),
    "sgd": lambda g: torch.optim.SGD(g, 0.01, momentum=0.9, weight_decay=0.1),
    "adafactor": lambda g: torch.optim.Adafactor(g, 0.01, weight_decay=0.1),
}


@each_recipe
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_without_gradients_theta_and_weights_shrink_and_the_rest_stays(recipe, optimizer):
    model = RECIPES[recipe](net())
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
    step = OPTIMIZERS[optimizer](parameter_groups(model))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    step.step()
    for name, group in sorted_(model).items():
        for p in group:
            assert bool((p == 1).all()) if name == "rest" else bool((p < 1).all()), name


@each_recipe
def test_muon_takes_the_matrices_and_another_optimizer_what_is_left(recipe):
    model = RECIPES[recipe](net())
    groups = {group["name"]: group for group in parameter_groups(model)}
    optimizers = [torch.optim.Muon([groups.pop("matrices")], 0.02)] if "matrices" in groups else []
    optimizers.append(torch.optim.AdamW([*groups.values()], 0.01))
    before = [p.detach().clone() for p in model.parameters()]
    loss(model).backward()
    for optimizer in optimizers:
        optimizer.step()
    for p, was in zip(model.parameters(), before, strict=True):
        assert not p.grad.any() or not torch.equal(p, was)


def test_options_are_those_of_their_group_and_of_no_other():
    model = RECIPES["one layer"](net())
    groups = parameter_groups(model, theta={"lr": 1.0}, kernels={"weight_decay": 0.3}, rest={"weight_decay": 0.2})
    found = {group["name"]: {k: v for k, v in group.items() if k not in ("params", "name")} for group in groups}
    assert found == {
        "theta": {"lr": 1.0},
        "matrices": {},
        "kernels": {"weight_decay": 0.3},
        "rest": {"weight_decay": 0.2},
    }
    with pytest.raises(TypeError, match="options must be for groups named theta, matrices, kernels, rest, got some"):
        parameter_groups(model, alpha={"lr": 1.0})
