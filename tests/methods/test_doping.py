"""Doping: a Kronecker product and a sparse matrix, exactly the numbers asked for, either left out now and then."""

import io
import math

import numpy as np
import pytest
import torch
from torch import nn

import subspace
from subspace import Key, methods, recipes, subspaces
from subspace.embeddings import Kronecker, Sparse
from subspace.methods.doping import largest_factor

X = torch.from_numpy(Key(7).normal(3 * 5 * 12)).float().reshape(3, 5, 12)


class Net(nn.Module):
    """Gates, a convolution and a linear layer."""

    def __init__(self):
        super().__init__()
        self.recurrent = nn.LSTM(12, 16, batch_first=True)
        self.conv, self.fc = nn.Conv1d(16, 24, 3), nn.Linear(24, 10)

    def forward(self, x):
        return self.fc(self.conv(self.recurrent(x)[0].mT).mean(2))


def net():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Net()


def trained(model):
    return sum(p.numel() for name, p in model.named_parameters() if "bias" not in name)


N = trained(net())


@pytest.mark.parametrize("dope", [methods.dope, recipes.doped])
@pytest.mark.parametrize("size", [{"density": 0.3}, {"density": 0.1}, {"dim": 400}, {"dim": 9}])
@pytest.mark.parametrize("share", [0.2, 0.8])
def test_all_factors_and_sparse_parts_together_have_the_numbers_asked_for(dope, size, share):
    model = dope(net(), **size, share=share)
    assert trained(model) == size.get("dim", round(N * size.get("density", 0)))
    model(X).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("dope", [methods.dope, recipes.doped])
def test_the_seed_says_every_number(dope):
    first, again, other = (dict(dope(net(), density=0.2, seed=seed).named_parameters()) for seed in (1, 1, 2))
    assert all(torch.equal(p, again[name]) for name, p in first.items())
    assert any(not torch.equal(p, other[name]) for name, p in first.items())


def test_with_both_factors_a_weight_is_their_kronecker_product_and_the_sparse_part():
    plain, model = net(), methods.dope(net(), density=0.3)
    for name, space in subspaces(model):
        with torch.no_grad():
            space.theta.normal_()
        product = space.module.parametrizations[name.rpartition(".")[2]][1]
        wanted = np.kron(product.B.detach(), product.C.detach()).reshape(space.shape)
        S = space.embedding(space.theta).detach()
        weight = getattr(space.module, name.rpartition(".")[2]).detach()
        np.testing.assert_allclose(weight, wanted + S.numpy(), atol=1e-6)
        assert int((S != 0).sum()) == len(space.theta)
        before = plain.get_parameter(name).detach()
        assert math.log(wanted.std() / before.std().item()) == pytest.approx(0, abs=1)


def test_with_one_factor_a_weight_starts_as_large_as_it_was_in_the_range_of_the_product():
    plain, model = net(), recipes.doped(net(), density=0.3)
    for name, space in subspaces(model):
        product, sparse = space.embedding.parts()
        assert (type(product), type(sparse)) == (Kronecker, Sparse)
        weight, before = getattr(space.module, name.rpartition(".")[2]).detach(), plain.get_parameter(name).detach()
        assert weight.norm() == pytest.approx(before.norm().item(), rel=1e-5)
        along = (weight * before).sum() / weight.norm()
        assert along == pytest.approx(product.coordinates(before).norm().item(), rel=1e-4)
    loaded = subspace.load(net(), subspace.save(model, file := io.BytesIO()) or io.BytesIO(file.getvalue()))
    assert torch.equal(loaded(X), model(X))


def test_a_tensor_without_room_for_factors_has_the_weights_kept():
    for dope in (methods.dope, recipes.doped):
        plain, model = net(), dope(net(), dim=2)
        for name, space in subspaces(model):
            kept = plain.get_parameter(name).detach().flatten()[space.embedding.index]
            assert torch.equal(space.theta.detach(), kept)


def test_dropout_leaves_out_either_as_often_and_only_in_training():
    model = methods.dope(net(), density=0.3, dropout=0.4)
    space = dict(subspaces(model))["fc.weight"]
    with torch.no_grad():
        space.theta.fill_(1.0)
    S = space.embedding(space.theta)
    whole = model.eval().fc.weight.detach()
    assert all(torch.equal(model.fc.weight, whole) for _ in range(20))
    model.train()
    torch.manual_seed(0)
    draws = [model.fc.weight.detach() for _ in range(2000)]
    for alone in (S, whole - S):
        share = np.mean([torch.allclose(drawn, alone, atol=1e-6) for drawn in draws])
        assert share == pytest.approx(0.2, abs=0.04)
    assert np.mean([torch.equal(drawn, whole) for drawn in draws]) == pytest.approx(0.6, abs=0.05)


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("most", [1, 20, 37, 150])
@pytest.mark.parametrize("shape", [(12, 18), (16, 16), (7, 30)])
def test_the_largest_factor_is_found(shape, most, both):
    rows, columns = shape
    fits = [
        p * q
        for p in range(1, rows + 1)
        for q in range(1, columns + 1)
        if rows % p == columns % q == 0 and p * q + both * rows * columns // (p * q) <= most
        if rows * columns >= 8 * p * q
    ]
    found = largest_factor(rows, columns, most, both)
    assert (found and math.prod(found)) == max(fits, default=None)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"density": 0.1, "share": 0.0}, r"^share must be in \(0, 1\), got 0.0$"),
        ({"density": 0.1, "share": 1}, r"^share must be in \(0, 1\), got 1$"),
        ({"density": 1.5}, "density must be in"),
    ],
)
@pytest.mark.parametrize("dope", [methods.dope, recipes.doped])
def test_bad_input_leaves_the_model_as_it_was(dope, options, error):
    model = net()
    before = dict(model.named_parameters())
    with pytest.raises(ValueError, match=error):
        dope(model, **options)
    assert dict(model.named_parameters()).keys() == before.keys()
    assert all(p is before[name] for name, p in model.named_parameters())


def test_a_dropout_that_is_no_share_is_refused():
    with pytest.raises(ValueError, match=r"^dropout must be in \[0, 1\], got 1.5$"):
        methods.dope(net(), density=0.1, dropout=1.5)
