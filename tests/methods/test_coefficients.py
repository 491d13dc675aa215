"""What is scored, pruned and moved in a basis: the formulas by a dense matrix, and the identity is the weights."""

from __future__ import annotations

import copy
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from subspace import budgets, embeddings, load, materialize, methods, recipes, save, structured, subspaces, targets
from subspace.embeddings import Basis, Identity, Singular, Sparse
from subspace.offsets import DCT, Pretrained
from tests.methods.test_saliency import SALIENCIES, batch, convolutional, each_network, loss, made, state
from tests.support.cases import each_with_one, rest_slow
from tests.support.strategies import matrix, numbers

BASES = {
    "dct": embeddings.DCT,
    "dct-filters": lambda w: embeddings.DCT(w, over="filters"),
    "haar": embeddings.Haar,
    "hadamard": embeddings.Hadamard,
    "singular": lambda w: Singular(Pretrained(w)),
}
each_basis = pytest.mark.parametrize("basis", BASES.values(), ids=BASES)
each_saliency = pytest.mark.parametrize("saliency", SALIENCIES.values(), ids=SALIENCIES)
pytestmark = pytest.mark.filterwarnings("ignore:the budget of")


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(map(torch.equal, one.values(), other.values()))


def dense_bases(model: nn.Module, basis) -> dict[str, Tensor]:
    """B of every chosen weight as a dense matrix in float64."""
    return {q: matrix(basis(t.weight.detach().double())) for q, t in targets(model).items()}


@each_saliency
@each_network
def test_in_the_identity_basis_scores_are_those_of_weights_to_the_bit(saliency, network):
    model = made(network)
    assert equal(saliency(model, loss, basis=Identity), saliency(model, loss))


@pytest.mark.parametrize("saliency, basis", each_with_one(SALIENCIES, BASES))
@each_network
def test_scoring_in_a_basis_leaves_the_model_as_it_was(saliency, basis, network):
    saliency, basis, model = SALIENCIES[saliency], BASES[basis], made(network)
    loss(model).backward()
    before, parameters = state(model), list(model.parameters())
    scores = saliency(model, loss, basis=basis)
    assert state(model) == before
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert all(s.shape == model.get_parameter(q).shape and s.isfinite().all() for q, s in scores.items())
    copy.deepcopy(model)


def of_coefficients(model: nn.Module, B: dict[str, Tensor]):
    """Coefficients, and the loss as a function of them, by dense matrices."""
    c = {q: b.T @ model.get_parameter(q).detach().double().flatten() for q, b in B.items()}
    x, y = batch()

    def objective(c: dict[str, Tensor]) -> Tensor:
        weights = {q: (B[q] @ each).reshape(model.get_parameter(q).shape) for q, each in c.items()}
        return cross_entropy(functional_call(model, weights, (x.double(),)), y)

    return c, objective


@each_basis
def test_scores_in_a_basis_are_their_formulas(basis):
    model = made(convolutional, dtype=torch.float64).eval()
    B = dense_bases(model, basis)
    c, objective = of_coefficients(model, B)
    g = torch.func.grad(objective)(c)
    curved = torch.func.jvp(torch.func.grad(objective), (c,), (g,))[1]
    expected = {
        methods.magnitude: {q: c[q].abs() for q in c},
        methods.gradient: {q: g[q].abs() for q in c},
        methods.snip: {q: (c[q] * g[q]).abs() for q in c},
        methods.grasp: {q: c[q] * curved[q] for q in c},
    }
    for saliency, scores in expected.items():
        found = saliency(model, loss, basis=basis)
        for q, s in scores.items():
            np.testing.assert_allclose(found[q].flatten(), s.detach(), rtol=1e-8, atol=1e-12)


@each_basis
def test_synflow_in_a_basis_conserves_its_flow(basis):
    """sum_j c_j dR(|w|)/dc_j = R in a network without biases, whatever the basis."""
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False)).double()
    B = dense_bases(model, basis)
    c = {q: b.T @ model.get_parameter(q).detach().flatten() for q, b in B.items()}
    ones = torch.ones(1, 6, dtype=torch.float64)

    def flow(c: dict[str, Tensor]) -> Tensor:
        weights = {q: (B[q] @ each).reshape(model.get_parameter(q).shape).abs() for q, each in c.items()}
        return functional_call(model, weights, (ones,)).sum()

    slopes = torch.func.grad(flow)(c)
    found = methods.synflow(model.float(), methods.flow(1, 6), basis=lambda w: basis(w))
    for q, g in slopes.items():
        np.testing.assert_allclose((c[q] * g).sum(), flow(c))
        np.testing.assert_allclose(found[q].flatten(), (c[q] * g).abs(), rtol=2e-4, atol=2e-4)


PRUNED = {
    "snip": lambda net, **more: methods.supports(net, methods.snip, loss, 0.1, **more),
    "iterative": lambda net, **more: methods.supports(net, methods.snip, loss, 0.1, steps=4, **more),
    "grasp": lambda net, **more: methods.supports(net, methods.grasp, loss, 0.1, **more),
    "synflow": lambda net, **more: methods.supports(
        net, methods.synflow, methods.flow(1, 1, 8, 8), 0.1, steps=5, **more
    ),
    "magnitude": lambda net, **more: methods.supports(net, methods.magnitude, None, 0.1, budget=budgets.epl, **more),
    "rows": lambda net, **more: methods.supports(net, methods.magnitude, None, 0.3, groups=methods.rows, **more),
    "force": lambda net, **more: methods.force(net, loss, 0.1, steps=4, **more),
}
RECIPES = {
    "snip": lambda net, **more: recipes.snip(net, loss, density=0.1, **more),
    "force": lambda net, **more: recipes.force(net, loss, density=0.1, steps=4, **more),
    "synflow": lambda net, **more: recipes.synflow(net, methods.flow(1, 1, 8, 8), density=0.1, steps=3, **more),
    "imp": lambda net, **more: recipes.imp(net, trained, density=0.1, fraction=0.5, **more),
    "random": lambda net, **more: recipes.random_pruning(net, density=0.1, **more),
    "rigl": lambda net, **more: recipes.rigl(net, density=0.1, **more),
    "dctps": lambda net, **more: recipes.dctps(net, density=0.1, **more),
    "dctps by gradient": lambda net, **more: recipes.dctps(net, density=0.1, objective=loss, **more),
}


def trained(net: nn.Module, steps: int = 3, mover=None) -> nn.Module:
    net.eval()
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    moving = None if mover is None else mover(net, optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(net).backward()
        optimizer.step()
        if moving:
            moving.step(loss)
    return net


@pytest.mark.parametrize("name", PRUNED)
@each_network
def test_in_the_identity_basis_index_sets_are_those_of_weights(name, network):
    model = made(network)
    if name == "synflow" and network is not convolutional:
        return
    assert equal(PRUNED[name](model, basis=Identity), PRUNED[name](model))


@pytest.mark.parametrize("name", RECIPES)
def test_in_the_identity_basis_a_recipe_is_the_same_and_trains_the_same(name):
    one, other = (RECIPES[name](made(convolutional), **more) for more in ({}, {"basis": Identity}))
    for _ in range(2):
        for (_, a), (_, b) in zip(subspaces(one), subspaces(other), strict=True):
            assert torch.equal(a.module.weight, b.module.weight)
            sparse = [part for part in b.parametrization.modules() if isinstance(part, Sparse)]
            mine = [part for part in a.parametrization.modules() if isinstance(part, Sparse)]
            assert [s.index.tolist() for s in sparse] == [s.index.tolist() for s in mine]
            assert torch.equal(a.theta, b.theta)
        trained(one), trained(other)


@pytest.mark.parametrize("name, basis", each_with_one(RECIPES, BASES))
def test_a_recipe_in_a_basis_has_exactly_as_many_coefficients(name, basis):
    basis = BASES[basis]
    model = RECIPES[name](made(convolutional), basis=basis)
    N = sum(space.shape.numel() for _, space in subspaces(model))
    dims = [U.dim for _, space in subspaces(model) for U in space.embedding.parts() if U.direction() is None]
    assert sum(dims) == round(0.1 * N)
    for q, space in subspaces(model):
        U = space.embedding.parts()[-1]
        assert isinstance(U, Basis)
        if "dctps" not in name:
            dense = made(convolutional).get_parameter(q).detach()
            B = matrix(basis(dense.double()))
            c = B.T @ dense.double().flatten()
            kept = torch.zeros_like(c)
            kept[U.sparse.index] = c[U.sparse.index]
            np.testing.assert_allclose(space.module.weight.detach().flatten(), B @ kept, atol=1e-5)


@pytest.mark.parametrize("basis", rest_slow(BASES.values(), [embeddings.Haar]))
@given(rounds=st.integers(1, 3))
def test_a_ticket_prunes_and_rewinds_coefficients(basis, rounds):
    start = made(convolutional, dtype=torch.float64).eval()
    search = methods.LotteryTicket(start, trained, fraction=0.4, basis=basis)
    B = dense_bases(start, basis)
    first = {q: B[q].T @ start.get_parameter(q).detach().flatten() for q in B}
    kept = {q: torch.ones_like(c, dtype=torch.bool) for q, c in first.items()}
    for _ in range(rounds):
        net = trained(materialize(search.ticket()) if not search.rounds else search.ticket())
        weights = {q: net.get_submodule(q.rpartition(".")[0]).weight.detach() for q in B}
        scores = torch.cat([torch.where(kept[q], (B[q].T @ w.flatten()).abs(), -1) for q, w in weights.items()])
        search.prune()
        chosen = torch.zeros_like(scores, dtype=torch.bool)
        chosen[scores.topk(search.dim).indices] = True
        kept = dict(zip(B, chosen.split([len(c) for c in first.values()]), strict=True))
        assert all(search.supports[q].tolist() == kept[q].nonzero().flatten().tolist() for q in B)
    ticket = search.ticket()
    for q, b in B.items():
        w = ticket.get_submodule(q.rpartition(".")[0]).weight.detach().flatten()
        np.testing.assert_allclose(w, b @ (first[q] * kept[q]), atol=1e-10)


def test_a_basis_of_the_weights_is_that_of_the_first_round():
    """Singular vectors of weights that are pruned meanwhile would be others."""
    made_of = []

    def basis(w: Tensor) -> Singular:
        made_of.append(w.clone())
        return Singular(Pretrained(w))

    model = made(convolutional)
    methods.supports(model, methods.snip, loss, 0.1, steps=5, basis=basis)
    assert len(made_of) == len(targets(model))
    assert all(torch.equal(w, t.weight) for w, t in zip(made_of, targets(model).values(), strict=True))


def test_only_bases_of_chosen_tensors_are_made():
    model, asked = made(convolutional), []
    methods.supports(model, methods.magnitude, None, 0.1, basis=lambda w: asked.append(w.shape) or embeddings.DCT(w))
    assert asked == [t.weight.shape for t in targets(model).values()]


def test_dctps_in_another_basis_trains_structured():
    net = recipes.offset_plus_sparse(lambda w, key: DCT(w))(
        nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8)), density=0.05, basis=embeddings.Haar
    )
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(structured(copy.deepcopy(net))(x), net(x))


MOVERS = {
    "SET": lambda net, optimizer: methods.SET(net, optimizer, t_end=20, delta_t=2),
    "RigL": lambda net, optimizer: methods.RigL(net, optimizer, t_end=20, delta_t=2),
}
STARTS = {"zero": recipes.rigl, "dctps": recipes.dctps_rigl}


def sparse_parts(model: nn.Module) -> dict[str, Sparse]:
    return {q: U.sparse_part() for q, s in subspaces(model) for U in s.embedding.parts() if U.sparse_part() is not None}


@pytest.mark.parametrize("mover", MOVERS)
@pytest.mark.parametrize("start", STARTS)
def test_in_the_identity_basis_movers_move_the_same(mover, start):
    one, other = (STARTS[start](made(convolutional), density=0.2, **more) for more in ({}, {"basis": Identity}))
    for model in (one, other):
        trained(model, 9, MOVERS[mover])
    before = sparse_parts(STARTS[start](made(convolutional), density=0.2))
    moved = 0
    for (q, a), (_, b) in zip(sparse_parts(one).items(), sparse_parts(other).items(), strict=True):
        assert torch.equal(a.index, b.index)
        moved += int((~torch.isin(a.index, before[q].index)).sum())
    assert moved > 2
    for (_, a), (_, b) in zip(subspaces(one), subspaces(other), strict=True):
        assert torch.equal(a.theta, b.theta)


@pytest.mark.parametrize("basis, moving", each_with_one(BASES, product(STARTS, [False, True])), ids=str)
def test_rigl_grows_where_the_gradient_to_coefficients_is_largest(basis, moving):
    basis, (start, fast) = BASES[basis], moving
    model = STARTS[start](made(convolutional, dtype=torch.float64).eval(), density=0.2, basis=basis)
    if fast:
        structured(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    mover = methods.RigL(model, optimizer, t_end=10, delta_t=1, fraction=0.5)
    before = {q: part.index.clone() for q, part in sparse_parts(model).items()}
    for seed, part in enumerate(mover.parts.values()):
        part.entries(part.space.theta).copy_(numbers(seed, part.sparse.dim))
    thetas = {q: part.entries(part.space.theta).clone() for q, part in mover.parts.items()}
    dense = materialize(model)
    loss(dense).backward()
    mover.step(loss)
    for q, part in sparse_parts(model).items():
        w = dense.get_parameter(q)
        g = (matrix(basis(made(convolutional).get_parameter(q).detach().double())).T @ w.grad.flatten()).abs()
        count = int(methods.cosine(0.1) * 0.5 * part.dim)
        kept = before[q][thetas[q].abs().argsort(stable=True)[count:]]
        g[kept] = -1
        assert set(part.index.tolist()) == {*kept.tolist(), *g.topk(count).indices.tolist()}


def test_a_moved_ticket_in_a_basis_is_saved_and_resumed(tmp_path):
    model = recipes.rigl(made(convolutional), density=0.2, basis=embeddings.Haar)
    trained(model, 9, MOVERS["RigL"])
    save(model, tmp_path / "c")
    again = load(made(convolutional), tmp_path / "c").eval()
    assert torch.equal(again(batch()[0]), model(batch()[0]))
    fresh = recipes.rigl(made(convolutional), density=0.2, basis=embeddings.Haar).eval()
    methods.RigL(fresh, torch.optim.SGD(fresh.parameters(), 0.1), t_end=9)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(batch()[0]), model(batch()[0]))


@pytest.mark.parametrize(
    ("rule", "kind", "error"),
    [
        (
            lambda w: embeddings.DCT(w.mT),
            ValueError,
            r"^basis must have the shape of 0.weight, \(6, 8\), got \(8, 6\)$",
        ),
        (
            lambda w: embeddings.DCT(w[:2]),
            ValueError,
            r"^basis must have the shape of 0.weight, \(6, 8\), got \(2, 8\)$",
        ),
        ("dct", TypeError, "^basis must be a function of a weight, such as embeddings.DCT, got 'dct'$"),
        (lambda w: None, TypeError, r"^basis must make a Transform for 0.weight, got NoneType$"),
        (lambda w: DCT(w), TypeError, r"^basis must make a Transform for 0.weight, got DCT$"),
    ],
)
@pytest.mark.parametrize(
    "choose",
    [
        lambda model, basis: recipes.random_pruning(model, density=0.1, basis=basis),
        lambda model, basis: recipes.dctps(model, density=0.1, basis=basis),
        lambda model, basis: recipes.magnitude(model, density=0.1, basis=basis),
        lambda model, basis: recipes.force(model, squares, density=0.1, basis=basis),
        lambda model, basis: recipes.imp(model, lambda net: None, density=0.1, basis=basis),
    ],
)
def test_a_basis_that_does_not_fit_is_refused_in_one_sentence_and_the_model_stays(choose, rule, kind, error):
    model = nn.Sequential(nn.Linear(8, 6))
    before = dict(model.named_parameters())
    with pytest.raises(kind, match=error):
        choose(model, rule)
    assert all(parameter is before[name] for name, parameter in model.named_parameters())


def squares(model: nn.Module) -> Tensor:
    return model(torch.ones(2, 8)).square().mean()
