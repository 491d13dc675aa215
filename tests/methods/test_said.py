"""SAID: d + lambda U theta, from the base's output, with as many numbers as are asked for."""

import io

import pytest
import torch
from torch import nn

import subspace
from subspace import Key, methods, recipes, subspaces
from subspace.embeddings import SRHT, Circulant, Hashed
from subspace.methods import ScaledUpdate
from subspace.offsets import Pretrained

X = torch.from_numpy(Key(7).normal(5 * 12)).float().reshape(5, 12)


def net():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(12, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 10))


def everything(name, tensor):
    return True


N = sum(p.numel() for p in net().parameters())


@pytest.mark.parametrize("embedding", [SRHT, Hashed])
@pytest.mark.parametrize("size", [{"density": 0.1}, {"dim": 7}])
def test_factors_and_theta_together_have_the_numbers_asked_for_and_start_at_the_base(size, embedding):
    model = methods.said(net(), **size, embedding=embedding, include=everything)
    assert sum(p.numel() for p in model.parameters()) == size.get("dim", round(N * 0.1))
    assert torch.equal(model(X), net()(X))
    with torch.no_grad():
        next(subspaces(model))[1].theta.normal_()
    model(X).sum().backward()
    scales = [module.scale for module in model.modules() if isinstance(module, ScaledUpdate)]
    assert len(scales) == 6
    assert all(scale.grad.isfinite() and scale.grad != 0 for scale in scales)


def test_with_factors_of_one_it_is_did_and_a_factor_scales_one_tensors_part():
    base, model = net(), methods.said(net(), dim=26, seed=3, include=everything)
    did = recipes.random_subspace(
        net(), dim=20, seed=3, offset=lambda w, _: Pretrained(w), embedding=SRHT, include=everything
    )
    theta = torch.from_numpy(Key(2).normal(20)).float()
    with torch.no_grad():
        for each in (model, did):
            next(subspaces(each))[1].theta.copy_(theta)
        torch.testing.assert_close(model(X), did(X))
        model[3].parametrizations.weight[1].scale.fill_(-2.5)
    for name, part, factor in (("0", "weight", 1), ("3", "weight", -2.5), ("3", "bias", 1), ("1", "weight", 1)):
        first, now, update = (getattr(each.get_submodule(name), part).detach() for each in (base, model, did))
        torch.testing.assert_close(now - first, factor * (update - first))


def test_a_state_dict_brings_theta_and_the_factors_back_and_a_plain_model_has_no_place_for_these():
    model, other = (methods.said(net(), dim=26) for _ in range(2))
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.add_(0.1 * number)
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(X), other(X))
    subspace.save(model, file := io.BytesIO())
    with pytest.raises(ValueError, match="the model must have the checkpoint's tensors, got a difference in 0.*scale"):
        subspace.load(net(), io.BytesIO(file.getvalue()))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"dim": 2}, "^dim must be above 2, a factor for each tensor and a theta, got 2$"),
        ({"density": 2 / 352}, "^dim must be above 2, a factor"),
        ({"density": 1.5}, "density must be in"),
        ({"dim": 9, "include": ["nowhere"]}, "include must"),
    ],
)
def test_bad_input_leaves_the_model_as_it_was(options, error):
    model = net()
    before = dict(model.named_parameters())
    with pytest.raises(ValueError, match=error):
        methods.said(model, **options)
    assert all(p is before[name] for name, p in model.named_parameters())


@pytest.mark.parametrize("recipe", [methods.said, recipes.random_subspace])
def test_an_embedding_that_tensors_cannot_share_is_refused(recipe):
    with pytest.raises(TypeError, match=r"^embedding must take \(weight, dim, key=, of=\), as .*, got: .*Circulant"):
        recipe(net(), dim=9, embedding=Circulant)
