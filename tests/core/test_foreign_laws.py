"""Beside other people's parametrizations, quantisers and hooks: composed where that is exact, else refused."""

from __future__ import annotations

import copy
import importlib.util

import pytest
import torch
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval, parametrizations, parametrize, prune

from subspace import Key, materialize, recipes, register, structured, subspaces, summary
from subspace.embeddings import Sparse
from subspace.offsets import DCT
from tests.support.strategies import numbers

close = torch.testing.assert_close
X = numbers(1, 3, 8, 8, 8)


class Symmetric(nn.Module):
    """Somebody's constraint, without a right inverse."""

    def forward(self, w):
        return w + w.transpose(0, 1)


class Half(nn.Module):
    """What changes the shape of a weight."""

    def forward(self, w):
        return w[:2]


def layer() -> nn.Conv2d:
    module = nn.Conv2d(8, 8, 3, padding=1).double()
    module.weight.data, module.bias.data = numbers(0, 8, 8, 3, 3), numbers(1, 8)
    return module


def ours(module: nn.Module, name: str = "weight"):
    w = getattr(module, name)
    return register(module, name, DCT(w), Sparse(w, 40, key=Key(0)))


def quantize(module: nn.Module) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    linear = recipes.dctps(nn.Sequential(nn.Linear(64, 64)), density=0.1)
    quantize_(linear, Int8WeightOnlyConfig())


COMPOSED = {  # put on a registered weight, as f(d + U theta)
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": lambda module: parametrizations.orthogonal(module, use_trivialization=False),
    "softplus": lambda module: parametrize.register_parametrization(module, "weight", nn.Softplus()),
    "symmetric": lambda module: parametrize.register_parametrization(module, "weight", Symmetric(), unsafe=True),
}
REFUSED = {  # put on a registered weight, with what is said
    "weight_norm": (parametrizations.weight_norm, "_WeightNorm must map a weight to one, to follow a subspace"),
    "orthogonal": (parametrizations.orthogonal, "_Orthogonal must map a weight to one, to follow a subspace"),
    "half": (
        lambda module: parametrize.register_parametrization(module, "weight", Half(), unsafe=True),
        r"Half must give a weight of \(8, 8, 3, 3\) torch.float64, got \(2, 8, 3, 3\)",
    ),
    "prune": (
        lambda module: prune.l1_unstructured(module, "weight", 0.5),
        r"weight_orig must be a Parameter, got what is computed from \['weight'\]: call materialize\(model\) first",
    ),
    "another Parameter": (
        lambda module: setattr(module, "weight", nn.Parameter(torch.zeros(8, 8, 3, 3))),
        r"weight must stay d \+ U theta, got a Parameter in its place: call materialize\(model\) first",
    ),
    "fuse_conv_bn_eval": (
        lambda module: fuse_conv_bn_eval(module.eval(), nn.BatchNorm2d(8).double().eval()),
        r"weight must stay d \+ U theta, got a Parameter in its place: call materialize\(model\) first",
    ),
    "fuse_modules": (
        lambda module: torch.ao.quantization.fuse_modules(nn.Sequential(module, nn.BatchNorm2d(8)).eval(), ["0", "1"]),
        r"weight must stay d \+ U theta, got a Parameter in its place: call materialize\(model\) first",
    ),
    "torchao's quantize_": (
        quantize,
        r"weight must stay d \+ U theta, got a Parameter in its place: call materialize\(model\) first",
    ),
}
# Before a subspace: who makes a Parameter of another name, from which the weight is computed, can have it registered.
BY_PARAMETRIZATION = {
    "weight_norm": (parametrizations.weight_norm, "original1"),
    "spectral_norm": (parametrizations.spectral_norm, "original"),
    "orthogonal": (parametrizations.orthogonal, "original"),
    "symmetric": (COMPOSED["symmetric"], "original"),
}
BY_HOOK = {
    "weight_norm": (nn.utils.weight_norm, "weight_v"),
    "spectral_norm": (nn.utils.spectral_norm, "weight_orig"),
    "prune": (lambda module: prune.l1_unstructured(module, "weight", 0.5), "weight_orig"),
}


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("name", COMPOSED)
def test_one_that_maps_weights_to_weights_follows_a_subspace(name, fast):
    module = layer()
    space = ours(module)
    if fast:
        structured(module)
    COMPOSED[name](module)
    module.eval()  # in which power iterations rest
    theta = space.theta.detach().clone().requires_grad_()
    function = module.parametrizations.weight[1]
    expected = function(space.parametrization(theta))
    close(module.weight, expected)
    close(module(X), torch.conv2d(X, expected, module.bias, padding=1))
    module(X).square().sum().backward()
    torch.conv2d(X, expected, module.bias, padding=1).square().sum().backward()
    close(space.theta.grad, theta.grad)
    assert summary(module).rows[0].plain_because == "parametrized again"
    dense = materialize(module)
    assert not list(subspaces(dense))
    close(dense(X), module(X))
    close(dense.parametrizations.weight.original.detach(), space.parametrization(space.theta).detach())
    close(copy.deepcopy(module)(X), module(X))


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_follow_a_subspace_is_refused_and_the_layer_is_as_it_was(name, fast):
    if "torchao" in name and importlib.util.find_spec("torchao") is None:
        pytest.skip("torchao is not installed")
    module, (put, said) = layer(), REFUSED[name]
    space = ours(module)
    if fast:
        structured(module)
    before, expected = str(module), module(X)
    state = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(ValueError, match=said):
        put(module)
    assert str(module) == before
    torch.testing.assert_close(dict(module.state_dict()), state)
    close(module(X), expected)
    assert next(subspaces(module))[1].theta is space.theta
    if name not in ("half", "torchao's quantize_"):
        put(materialize(module))


@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm"])
def test_the_old_norms_fail_loudly_on_a_registered_weight(name):
    module = layer()
    ours(module)
    expected = module(X)
    with pytest.raises(KeyError, match="weight"):
        getattr(nn.utils, name)(module)
    close(module(X), expected)
    getattr(nn.utils, name)(materialize(module))


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_dynamic_quantisation_is_for_materialized_models():
    model = recipes.dctps(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8)), density=0.1).eval()
    x = torch.linspace(-1, 1, 128).reshape(2, 64)
    expected = model(x)
    with pytest.raises(AssertionError, match="only works for one of"):
        torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    quantized = torch.ao.quantization.quantize_dynamic(materialize(structured(model)), {nn.Linear})
    close(quantized(x), expected, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("name", BY_PARAMETRIZATION)
def test_a_subspace_follows_a_parametrization_on_what_that_starts_from(name):
    put, original = BY_PARAMETRIZATION[name]
    module, plain = layer(), layer()
    for each in (module, plain):
        torch.manual_seed(0)
        put(each)
        each.eval()
    with pytest.raises(
        ValueError, match="weight must not be parametrized yet, got one that is: register .* starts from"
    ):
        ours(module)
    space = ours(module.parametrizations.weight, original)
    with torch.no_grad():
        getattr(plain.parametrizations.weight, original).copy_(space.parametrization(space.theta))
    close(module(X), plain(X))
    assert [qualified for qualified, _ in subspaces(module)] == [f"parametrizations.weight.{original}"]
    module(X).square().sum().backward()
    plain(X).square().sum().backward()
    gradient = getattr(plain.parametrizations.weight, original).grad
    close(space.theta.grad, space.parametrization.embedding.adjoint(gradient))
    close(materialize(module)(X), plain(X))
    close(structured(copy.deepcopy(module))(X), plain(X))


@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize("name", BY_HOOK)
def test_a_subspace_on_what_a_hook_starts_from(name):
    put, original = BY_HOOK[name]
    module, plain = layer(), layer()
    for each in (module, plain):
        torch.manual_seed(0)
        put(each)
        each.eval()
    with pytest.raises(ValueError, match=rf"name must be one of .*{original}.*, got 'weight', a buffer or what a hook"):
        ours(module)
    space = ours(module, original)
    with torch.no_grad():
        getattr(plain, original).copy_(space.parametrization(space.theta))
    close(module(X), plain(X))
    module(X).square().sum().backward()
    plain(X).square().sum().backward()
    close(space.theta.grad, space.parametrization.embedding.adjoint(getattr(plain, original).grad))
    close(structured(module)(X), plain(X))


def test_a_gradient_hook_on_the_weight_is_refused_before_anything_happens():
    model = nn.Sequential(layer(), layer())
    handle = model[1].weight.register_hook(lambda g: g * 0)
    with pytest.raises(ValueError, match="weight must have no gradient hook, which would be given theta's gradient"):
        recipes.dctps(model, density=0.1)
    assert not list(subspaces(model))
    handle.remove()
    recipes.dctps(model, density=0.1)


def test_a_hook_after_accumulation_goes_on_with_theta():
    module, seen = layer(), []
    module.weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.shape))
    space = ours(module)
    module(X).sum().backward()
    assert seen == [space.theta.shape]
