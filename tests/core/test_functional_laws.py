"""torch.func on registered and structured models: per-sample gradients, forward mode, Hessians, ensembles of thetas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jvp, stack_module_state, vjp, vmap

from subspace import Key, materialize, recipes, register, structured
from subspace.embeddings import Sparse
from subspace.offsets import Hadamard, RankOne, SignedDCT
from tests.support.cases import OFFSETS
from tests.support.strategies import numbers

close = torch.testing.assert_close
RECIPES = {
    "sparse_finetuning": lambda net: recipes.sparse_finetuning(net, density=0.1),
    "freezenet": lambda net: recipes.freezenet(net, density=0.1),
    "random_pruning": lambda net: recipes.random_pruning(net, density=0.1),
    "dctps": lambda net: recipes.dctps(net, density=0.1),
    "signed": lambda net: recipes.offset_plus_sparse(lambda w, key: SignedDCT(w, key=key))(net, density=0.1),
    "hadamard": lambda net: recipes.offset_plus_sparse(lambda w, key: Hadamard(w))(net, density=0.1),
    "rank-one": lambda net: recipes.offset_plus_sparse(lambda w, key: RankOne(w, key=key))(net, density=0.1),
    "random_subspace": lambda net: recipes.random_subspace(net, dim=6),
}
NETS = {
    "linear": (lambda: nn.Sequential(nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 3)), (9,)),
    "conv": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(24, 3)), (2, 5, 4)),
}
CASES = [(recipe, net, fast) for recipe in RECIPES for net in NETS for fast in (False, True)]
each_case = pytest.mark.parametrize("recipe, net, fast", CASES)
Y, THETA = torch.tensor([0, 2, 1, 1]), "parametrizations.weight.original"


def case(recipe: str, net: str, fast: bool) -> tuple[nn.Module, dict[str, Tensor], Tensor]:
    """A model, its Parameters by name, and inputs."""
    make, shape = NETS[net]
    model = RECIPES[recipe](make().double())
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(0.3 * numbers(number, *parameter.shape))
    if fast:
        structured(model)
    return model, {name: p.detach() for name, p in model.named_parameters()}, numbers(50, 4, *shape)


def loss(model: nn.Module, parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(functional_call(model, parameters, (x,)), y)


@each_case
def test_per_sample_gradients_are_those_of_each_sample(recipe, net, fast):
    model, parameters, x = case(recipe, net, fast)
    one = lambda p, x, y: loss(model, p, x[None], y[None])  # noqa: E731
    found = vmap(grad(one), (None, 0, 0))(parameters, x, Y)
    for sample in range(len(x)):
        model.zero_grad()
        nn.functional.cross_entropy(model(x[sample : sample + 1]), Y[sample : sample + 1]).backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                close(found[name][sample], parameter.grad)


@each_case
def test_forward_mode_is_the_transpose_of_backward_mode(recipe, net, fast):
    model, parameters, x = case(recipe, net, fast)
    tangents = {name: numbers(7, *p.shape) for name, p in parameters.items()}
    outputs = lambda p: functional_call(model, p, (x,))  # noqa: E731
    y, tangent = jvp(outputs, (parameters,), (tangents,))
    close(y, model(x))
    u = numbers(8, *y.shape)
    (gradients,) = vjp(outputs, parameters)[1](u)
    close((u * tangent).sum(), sum((gradients[name] * tangents[name]).sum() for name in parameters))


@each_case
def test_hessians_are_those_of_two_backward_passes(recipe, net, fast):
    model, parameters, x = case(recipe, net, fast)
    name = next(name for name in parameters if name.endswith("original"))
    by_func = hessian(lambda theta: loss(model, parameters | {name: theta}, x, Y))(parameters[name])
    theta = dict(model.named_parameters())[name]
    (gradient,) = torch.autograd.grad(loss(model, {}, x, Y), theta, create_graph=True)
    rows = [torch.autograd.grad(g, theta, retain_graph=True)[0] for g in gradient]
    close(by_func, torch.stack(rows))


@each_case
def test_an_ensemble_of_thetas_of_one_d_and_u_is_that_of_its_members(recipe, net, fast):
    model, parameters, x = case(recipe, net, fast)
    several = {name: torch.stack([p, -p, 2 * p]) for name, p in parameters.items()}
    call = lambda p: functional_call(model, p, (x,))  # noqa: E731
    expected = torch.stack([call({name: p[i] for name, p in several.items()}) for i in range(3)])
    close(vmap(call)(several), expected)
    biases = {name: p for name, p in several.items() if "bias" in name}
    expected = torch.stack([call({name: p[i] for name, p in biases.items()}) for i in range(3)])
    close(vmap(call)(biases), expected)


def test_an_ensemble_over_seeds_is_one_of_materialized_models():
    members = [recipes.dctps(NETS["linear"][0]().double(), density=0.1, seed=seed) for seed in range(3)]
    x = numbers(0, 4, 9)
    parameters, buffers = stack_module_state([materialize(member) for member in members])
    base = materialize(members[0]).to("meta")
    found = vmap(lambda p, b: functional_call(base, (p, b), (x,)))(parameters, buffers)
    close(found, torch.stack([member(x) for member in members]))


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("offset", OFFSETS, ids=lambda case: case.name)
def test_what_is_kept_between_calls_is_of_no_transform(offset, fast):
    layer = nn.Linear(37, 41).double()  # of sizes that nobody has used before
    register(layer, "weight", offset.make(layer.weight, Key(0)), Sparse(layer.weight, 9, key=Key(1)))
    if fast:
        structured(layer)
    x, parameters = numbers(0, 2, 37), {name: p.detach() for name, p in layer.named_parameters()}
    value = lambda p: functional_call(layer, p, (x,)).square().sum()  # noqa: E731
    hessian(lambda theta: value(parameters | {THETA: theta}))(parameters[THETA])  # two levels, then one, then none
    first = grad(value)(parameters)
    layer(x).square().sum().backward()
    for name, parameter in layer.named_parameters():
        close(first[name], parameter.grad)
