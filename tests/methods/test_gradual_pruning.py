"""Gradual pruning keeps theta's length and the largest of it, and ends as a sparse network."""

from __future__ import annotations

import copy
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from subspace import Key, budgets, load, materialize, recipes, register, save, subspaces, summary
from subspace.embeddings import Basis, Haar, Sparse
from subspace.methods import GradualPruning
from subspace.offsets import DCT, Zero
from tests.methods.test_moving import OPTIMIZERS, X, loss, net
from tests.support.cases import each_with_one, rest_slow
from tests.support.strategies import numbers

each_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)


def in_haar() -> nn.Module:
    model = net()
    for module in (model[0], model[3], model[8]):
        register(module, "weight", DCT(module.weight), Haar(module.weight))
    return model


STARTS = {"weights": lambda: recipes.ordinary(net()), "coefficients": in_haar}
each_start = pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)


def trained(model, mover, optimizer, steps):
    model.eval()
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
        mover.step(loss)


@pytest.mark.parametrize("budget", rest_slow([budgets.uniform, budgets.erk, None], [budgets.erk, None]))
@pytest.mark.parametrize("optimizer, start", each_with_one(OPTIMIZERS.values(), STARTS.values()))
def test_as_many_remain_as_the_schedule_says_and_none_returns(start, optimizer, budget):
    model = start()
    spaces = dict(subspaces(model))
    N = sum(space.shape.numel() for space in spaces.values())
    optimizer = optimizer(model.parameters())
    mover = GradualPruning(model, optimizer, 0.1, t_start=3, t_end=20, delta_t=4, budget=budget)
    final, before = round(0.1 * N), {name: set(range(s.shape.numel())) for name, s in spaces.items()}
    expected = N
    for t in range(1, 26):
        trained(model, mover, optimizer, 1)
        if t % 4 == 0 or t == 20:
            expected = final + round((N - final) * (1 - min(1, (t - 3) / 17)) ** 3)
        now = {name: set(s.theta.detach().nonzero().flatten().tolist()) for name, s in spaces.items()}
        assert sum(map(len, now.values())) == expected
        assert all(now[name] <= before[name] for name in spaces)
        if budget is not None:
            shapes = [space.shape for space in spaces.values()]
            assert [len(places) for places in now.values()] == budget(shapes, expected)
        before = now
    for name, space in spaces.items():
        pruned = torch.ones(len(space.theta), dtype=torch.bool)
        pruned[list(before[name])] = False
        for tensor in optimizer.state[space.theta].values():
            if tensor.shape == space.theta.shape:
                assert not tensor[pruned].any()


def test_what_is_pruned_is_smallest():
    model = nn.Linear(10, 20, bias=False)
    recipes.ordinary(model)
    (space,) = (space for _, space in subspaces(model))
    values = numbers(0, 200).float()
    with torch.no_grad():
        space.theta.copy_(values)
    mover = GradualPruning(model, torch.optim.SGD(model.parameters(), 0.1), dim=30, t_end=1, delta_t=1)
    mover.step()
    largest = set(values.abs().topk(30).indices.tolist())
    assert set(space.theta.detach().nonzero().flatten().tolist()) == largest


@each_start
def test_the_cut_network_is_the_same_and_sparse(start, tmp_path):
    model = start()
    dense = sum(len(space.theta) for _, space in subspaces(model))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    mover = GradualPruning(model, optimizer, 0.1, t_end=8, delta_t=2)
    trained(model, mover, optimizer, 10)
    before, weights = model(X), materialize(model)
    assert mover.cut() is model
    torch.testing.assert_close(model(X), before)
    for name, space in subspaces(model):
        assert isinstance(space.embedding, Sparse if start is STARTS["weights"] else Basis)
        torch.testing.assert_close(space.module.weight, weights.get_parameter(name))
        assert space.theta.requires_grad
    assert summary(model).dim == round(0.1 * dense) == sum(len(s.theta) for _, s in subspaces(model))
    save(model, tmp_path / "c")
    again = load(net(), tmp_path / "c").eval()
    assert torch.equal(again(X), model(X))
    loss(model).backward()
    assert all(space.theta.grad.shape == space.theta.shape for _, space in subspaces(model))


@each_start
def test_gradual_pruning_resumes_bit_exactly(start):
    def parts():
        model = start()
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        return model, GradualPruning(model, optimizer, 0.1, t_end=12, delta_t=3), optimizer

    whole, half, rest = parts(), parts(), parts()
    trained(*whole, 15)
    trained(*half, 7)
    for to, of in zip(rest, half, strict=True):
        to.load_state_dict(copy.deepcopy(of.state_dict()))
    trained(*rest, 8)
    assert torch.equal(whole[0](X), rest[0](X))
    assert all(torch.equal(a, b) for a, b in zip(whole[1].kept.values(), rest[1].kept.values(), strict=True))


def test_the_schedule_is_zhu_and_guptas():
    model = recipes.ordinary(nn.Linear(100, 100, bias=False))
    mover = GradualPruning(model, torch.optim.SGD(model.parameters(), 0.1), 0.05, t_start=10, t_end=110, delta_t=10)
    sparsity = []
    for t in range(1, 121):
        mover.step()
        sparsity.append(1 - len(mover.kept["weight"]) / 10_000)
        k = max(0, min(10, t // 10 - 1))
        expected = 0.95 + (0 - 0.95) * (1 - k * 10 / 100) ** 3
        np.testing.assert_allclose(sparsity[-1], expected, atol=1e-4)


def sparse_model():
    model = nn.Linear(4, 4)
    register(model, "weight", Zero(model.weight), Sparse(model.weight, 5, key=Key(0)))
    return model


@pytest.mark.parametrize(
    ("make", "options", "error"),
    [
        (lambda: nn.Linear(4, 4), {}, "model must have at least one registered subspace, got none"),
        (sparse_model, {}, "weight must have a theta of its 16 weights to be pruned, got 5 numbers"),
        (None, {"delta_t": 0}, "delta_t must be at least 1, got 0"),
        (None, {"t_start": 9}, r"t_start must be in \[0, 9\), before t_end, got 9"),
        (None, {"density": 0.0}, r"density must be in \(0, 1\], got 0.0"),
        (None, {"density": 0.5, "dim": 3}, "exactly one of density and dim must be given"),
    ],
)
def test_bad_input_is_refused(make, options, error):
    model = (make or (lambda: recipes.ordinary(nn.Linear(4, 4))))()
    with pytest.raises((TypeError, ValueError), match=error):
        GradualPruning(model, torch.optim.SGD(model.parameters(), 0.1), **{"density": 0.5, "t_end": 9} | options)


def test_a_theta_that_is_not_finite_prunes_nothing():
    model = recipes.ordinary(nn.Linear(4, 4))
    theta = next(subspaces(model))[1].theta
    with torch.no_grad():
        theta[3] = torch.nan
    mover = GradualPruning(model, torch.optim.SGD(model.parameters(), 0.1), 0.5, t_end=9, delta_t=1)
    with pytest.raises(FloatingPointError, match="got 1 of 16 in weight that are not in step 1"):
        mover.step()
    assert len(mover.kept["weight"]) == 16


AVERAGES = {
    "mean": (lambda model: AveragedModel(model), lambda n: 1 / (n + 1)),
    "EMA": (
        lambda model: AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8), use_buffers=True),
        lambda n: 0.2 if n else 1.0,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer, case", each_with_one(OPTIMIZERS, product(STARTS, AVERAGES, [False, True])), ids=str
)
def test_an_average_that_follows_is_that_of_all_thetas_but_for_what_is_pruned(optimizer, case):
    """before: it is updated before the pruning step, else after it."""
    start, average, before = case
    start, (make, weight) = STARTS[start], AVERAGES[average]
    model = start().eval()
    optimizer, average = OPTIMIZERS[optimizer](model.parameters()), make(model)
    mover = GradualPruning(model, optimizer, 0.1, t_start=3, t_end=10, delta_t=4, follow=average)
    means = [space.theta.detach().clone() for _, space in subspaces(model)]
    for n in range(12):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
        values = [space.theta.detach().clone() for _, space in subspaces(model)]
        if before:
            average.update_parameters(model)
        mover.step()
        if not before:
            average.update_parameters(model)
            values = [space.theta.detach().clone() for _, space in subspaces(model)]
        for mean, value, kept in zip(means, values, mover.kept.values(), strict=True):
            mean.lerp_(value, weight(n))
            pruned = torch.ones_like(mean, dtype=torch.bool)
            pruned[kept] = False
            mean[pruned] = 0
        for mean, (_, space) in zip(means, subspaces(average), strict=True):
            torch.testing.assert_close(space.theta.detach(), mean, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        y = average.eval()(X)
        mover.cut()
        assert [s.embedding.dim for _, s in subspaces(average)] == [s.embedding.dim for _, s in subspaces(model)]
        torch.testing.assert_close(average(X), y, rtol=1e-5, atol=1e-5)


def test_a_follower_of_another_model_is_refused():
    model = STARTS["weights"]()
    for other in (recipes.random_pruning(net(), dim=60), recipes.ordinary(nn.Linear(3, 3))):
        with pytest.raises(
            ValueError, match="a follower must have the thetas of the model that it follows, got others"
        ):
            GradualPruning(model, torch.optim.SGD(model.parameters(), 0.1), 0.1, t_end=4, follow=[other])


def test_pruned_numbers_do_not_return_however_large_they_become():
    model = recipes.ordinary(nn.Linear(10, 20, bias=False))
    (theta,) = (space.theta for _, space in subspaces(model))
    mover = GradualPruning(model, torch.optim.SGD(model.parameters(), 0.1), 0.1, t_end=8, delta_t=2)
    kept = set(range(200))
    for _ in range(10):
        with torch.no_grad():
            theta[theta == 0] = 100.0
        mover.step()
        now = set(theta.detach().nonzero().flatten().tolist())
        assert now <= kept
        kept = now
    assert len(kept) == 20
