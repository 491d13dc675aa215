"""Recipes: exact counts, the right tensors, the right start, and a model untouched by bad input."""

from __future__ import annotations

import copy
import inspect
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from subspace import Key, budgets, recipes, subspaces, summary
from subspace._base.selection import targets
from subspace.embeddings import SRHT, Hashed, Sparse
from subspace.offsets import DCT, Gaussian, Hadamard, RankOne
from subspace.offsets.per_matrix import in_layout


def net() -> nn.Module:
    """conv 72, norm, depthwise 72, attention 192 + 64, linear 40, beside an embedding table."""
    return nn.ModuleDict(
        {
            "table": nn.Embedding(5, 8),
            "conv": nn.Conv2d(1, 8, 3),
            "norm": nn.BatchNorm2d(8),
            "depthwise": nn.Conv2d(8, 8, 3, groups=8),
            "attention": nn.MultiheadAttention(8, 2),
            "head": nn.ModuleDict({"fc": nn.Linear(8, 5)}),
        }
    )


WEIGHTS = {
    "conv.weight": 72,
    "depthwise.weight": 72,
    "attention.in_proj_weight": 192,
    "attention.out_proj.weight": 64,
    "head.fc.weight": 40,
}
N = sum(WEIGHTS.values())
RANK_ONE = recipes.offset_plus_sparse(lambda w, key: RankOne(w, key=key), alpha=False)
HADAMARD = recipes.offset_plus_sparse(lambda w, key: Hadamard(w, gain=2.0))
BUDGETED = [recipes.random_pruning, recipes.freezenet, recipes.sparse_finetuning, recipes.dctps, RANK_ONE, HADAMARD]
each_budgeted = pytest.mark.parametrize("recipe", BUDGETED, ids=lambda recipe: recipe.__name__)
each_recipe = pytest.mark.parametrize("recipe", [*BUDGETED, recipes.random_subspace], ids=lambda r: r.__name__)


def supports(model: nn.Module) -> dict[str, set[int]]:
    return {
        name: set(part.index.tolist())
        for name, space in subspaces(model)
        for part in space.parametrization.modules()
        if isinstance(part, Sparse)
    }


@each_budgeted
@pytest.mark.filterwarnings("ignore:the budget of")
@given(density=st.floats(0.002, 1), seed=st.integers(0, 99), budget=st.sampled_from([budgets.uniform, budgets.epl]))
def test_counts_are_exact_and_cover_every_conv_and_linear_weight(recipe, density, seed, budget):
    model = recipe(net(), density=density, seed=seed, budget=budget)
    chosen = supports(model)
    assert sum(map(len, chosen.values())) == round(density * N)
    assert {name: space.parametrization.offset.shape.numel() for name, space in subspaces(model)} == WEIGHTS
    apart = [72, 72, 64, 64, 64, 64, 40]  # the queries', keys' and values' matrices count one by one
    one, two, *fused, out, head = budget([torch.Size([n]) for n in apart], round(density * N))
    assert [len(chosen[name]) for name in WEIGHTS] == [one, two, sum(fused), out, head]


@each_budgeted
@pytest.mark.filterwarnings("ignore:the budget of")
@given(few=st.integers(1, N), many=st.integers(1, N), budget=st.sampled_from([budgets.uniform, budgets.epl]))
def test_supports_are_nested_in_density(recipe, few, many, budget):
    few, many = sorted((few, many))
    small, large = (supports(recipe(net(), dim=dim, budget=budget)) for dim in (few, many))
    assert all(small[name] <= large[name] for name in WEIGHTS)


@each_recipe
def test_the_seed_and_the_names_decide_and_the_global_generators_do_not(recipe):
    models = []
    for global_seed, seed in ((0, 1), (1, 1), (1, 2)):
        torch.manual_seed(0)
        model = net()
        torch.manual_seed(global_seed)
        state = torch.get_rng_state()
        models.append(recipe(model, density=0.1, seed=seed))
        assert torch.equal(state, torch.get_rng_state())
    one, same, other = ([getattr(s.module, s.name) for _, s in subspaces(model)] for model in models)
    theta = torch.ones(44)
    thetas = [next(iter(subspaces(model)))[1] for model in models]
    maps = [space.parametrization(theta[: space.parametrization.dim]) for space in thetas]
    assert all(map(torch.equal, one, same))
    assert torch.equal(maps[0], maps[1])
    assert not torch.equal(maps[0], maps[2])
    assert len(other) == len(one)


def test_equal_tensors_of_different_names_have_different_maps():
    model = recipes.freezenet(nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10)), density=0.3)
    one, other = supports(model).values()
    assert one != other
    assert not torch.equal(model[0].weight, model[1].weight)


def test_order_of_registration_does_not_matter():
    whole = recipes.dctps(net(), dim=70)
    parts = net()
    for name in reversed(WEIGHTS):
        recipes.dctps(parts, dim=30 if "in_proj" in name else 10, include=[name])
    assert supports(parts) == supports(whole)


def test_starts():
    plain = net()
    pruned = recipes.random_pruning(copy.deepcopy(plain), density=0.2)
    frozen = recipes.freezenet(copy.deepcopy(plain), density=0.2, seed=3)
    tuned = recipes.sparse_finetuning(copy.deepcopy(plain), density=0.2)
    dct = recipes.dctps(copy.deepcopy(plain), density=0.2)
    usual = recipes.ordinary(copy.deepcopy(plain))
    random = recipes.random_subspace(copy.deepcopy(plain), dim=50, seed=3)
    for name in WEIGHTS:
        w = plain.get_parameter(name).detach()
        get = dict(subspaces(pruned)), dict(subspaces(frozen)), dict(subspaces(tuned)), dict(subspaces(dct))
        kept = torch.zeros_like(w).flatten()
        index = get[0][name].parametrization.embedding.index
        kept[index] = w.flatten()[index]
        layout = targets(plain)[name].layout
        d = Gaussian(w, key=Key(3).fold(name).fold("d"), layout=layout)()
        for model, expected in (
            (pruned, kept.view_as(w)),
            (frozen, d),
            (random, d),
            (tuned, w),
            (usual, w),
            (dct, in_layout(DCT(w), layout)()),
        ):
            space = dict(subspaces(model))[name]
            torch.testing.assert_close(getattr(space.module, space.name).detach(), expected)


@pytest.mark.parametrize("alpha", [True, False])
def test_an_offset_plus_sparse_is_dctps_with_another_d(alpha):
    recipe = recipes.offset_plus_sparse(lambda w, key: RankOne(w, key=key.fold("d")), alpha=alpha)
    model, dct = recipe(net(), density=0.2, seed=3), recipes.dctps(net(), density=0.2, seed=3)
    assert supports(model) == supports(dct)
    assert summary(model).alpha == (summary(dct).alpha if alpha else 0)
    assert summary(model).dim - summary(model).alpha == round(0.2 * N)
    for name, target in targets(net()).items():
        space = dict(subspaces(model))[name]
        expected = in_layout(RankOne(target.weight, key=Key(3).fold(name).fold("d")), target.layout)
        torch.testing.assert_close(getattr(space.module, space.name).detach(), expected())


@pytest.mark.parametrize("recipe", [recipes.dctps, HADAMARD, RANK_ONE])
def test_an_offset_at_full_density_has_no_alpha(recipe):
    assert summary(recipe(net(), density=1.0)).alpha == 0


def test_dctps_at_full_density_stays_injective():
    model = recipes.dctps(net(), density=1.0)
    assert summary(model).alpha == 0
    assert summary(model).dim == N


def test_random_subspace_has_one_theta_and_unit_columns():
    model = recipes.random_subspace(net().double(), dim=30)
    thetas = {id(space.theta) for _, space in subspaces(model)}
    basis = torch.eye(30, dtype=torch.float64)
    U = torch.cat(
        [
            torch.stack([space.parametrization.embedding(column).flatten() for column in basis], dim=1)
            for _, space in subspaces(model)
        ]
    )
    assert len(thetas) == 1
    assert U.shape == (N, 30)
    np.testing.assert_allclose(U.norm(dim=0), 1)
    assert stats.kstest(U.flatten() * N**0.5, "norm").pvalue > 1e-3
    assert torch.linalg.matrix_rank(U) == 30
    assert summary(model).dim == 30


@pytest.mark.parametrize("embedding", [SRHT, Hashed])
def test_random_subspace_has_any_u_of_rows(embedding):
    model = recipes.random_subspace(net().double(), dim=30, embedding=embedding, seed=1)
    spaces = [space for _, space in subspaces(model)]
    assert len({id(space.theta) for space in spaces}) == 1
    assert all(type(space.embedding) is embedding and space.embedding.of == N for space in spaces)
    basis = torch.eye(30, dtype=torch.float64)
    U = torch.cat([torch.stack([s.embedding(e).flatten() for e in basis], dim=1) for s in spaces])
    np.testing.assert_allclose(U.norm(dim=0), 1, rtol=0.1)
    assert torch.linalg.matrix_rank(U) == 30
    again = recipes.random_subspace(net().double(), dim=30, embedding=embedding, seed=1)
    assert torch.equal(dict(subspaces(again))["conv.weight"].embedding(basis[0]), spaces[0].embedding(basis[0]))


def test_random_subspace_draws_when_u_is_large(monkeypatch):
    monkeypatch.setattr(recipes, "STORED", 100)
    with pytest.warns(
        UserWarning, match=r"a Gaussian U of 440 x 20 entries is drawn again at every pass, .* 0 s a step"
    ):
        drawn = recipes.random_subspace(net(), dim=20)
    monkeypatch.undo()
    stored = recipes.random_subspace(net(), dim=20)
    for (_, one), (_, other) in zip(subspaces(drawn), subspaces(stored), strict=True):
        inner = one.parametrization.embedding.embedding, other.parametrization.embedding.embedding
        assert [part.matrix is None for part in inner] == [True, False]
        theta = torch.ones(20)
        torch.testing.assert_close(one.parametrization.embedding(theta), other.parametrization.embedding(theta))


def test_a_budget_that_leaves_tensors_empty_says_which():
    with pytest.warns(
        UserWarning, match="the budget of 2 leaves no entry to attention.in_proj_weight, attention.out_proj"
    ):
        model = recipes.random_pruning(net(), dim=2)
    assert not model["head"]["fc"].weight.any()
    x = torch.ones(1, 8, requires_grad=True)
    nn.functional.linear(x, model["head"]["fc"].weight).sum().backward()
    assert not x.grad.any()


@pytest.mark.parametrize(
    "include, exclude, names",
    [
        (["fc"], None, ["head.fc.weight"]),
        (["fc.bias", "norm.weight"], None, ["norm.weight", "head.fc.bias"]),
        ("head.*", None, ["head.fc.weight", "head.fc.bias"]),
        (lambda name, weight: weight.ndim == 4, None, ["conv.weight", "depthwise.weight"]),
        (None, ["conv", "attention"], ["depthwise.weight", "attention.out_proj.weight", "head.fc.weight"]),
        (None, ["attention.in_proj_weight", "out_proj", "fc"], ["conv.weight", "depthwise.weight"]),
        (None, "(conv|attention).*", ["depthwise.weight", "head.fc.weight"]),
        (".*weight", lambda name, weight: weight.ndim < 3, ["conv.weight", "depthwise.weight"]),
    ],
)
def test_targets(include, exclude, names):
    assert list(targets(net(), include, exclude)) == names
    model = recipes.random_pruning(net(), density=1.0, include=include, exclude=exclude)
    assert [name for name, _ in subspaces(model)] == names


def state(model):
    return {name: (id(t), t.clone()) for name, t in (*model.named_parameters(), *model.named_buffers())}, repr(model)


BAD = [
    ({"density": 0.0}, "density must be in (0, 1], got 0.0"),
    ({"density": 1.5}, "density must be in (0, 1], got 1.5"),
    ({"density": float("nan")}, "density must be in (0, 1], got nan"),
    ({"density": 1e-9}, "dim must be in [1, 440], got density=1e-09, which is 0 entries"),
    ({"dim": 441}, "dim must be in [1, 440], got dim=441"),
    ({"dim": 0}, "dim must be in [1, 440], got dim=0"),
    ({}, "exactly one of density and dim must be given, got density=None and dim=None"),
    ({"density": 0.1, "dim": 3}, "exactly one of density and dim must be given, got density=0.1 and dim=3"),
    ({"dim": 9, "seed": 0.5}, "seed must be an integer, got 0.5"),
    ({"dim": 9, "include": ["nothing"]}, "include must name tensors of the model, got 'nothing', which none ends in"),
    ({"dim": 9, "exclude": ["conv", "x"]}, "exclude must name tensors of the model, got 'x', which none ends in"),
    (
        {"dim": 9, "include": "conv"},
        "include must match whole names of tensors of the model, got 'conv', which matches none; suffixes want a list",
    ),
]


@each_recipe
@pytest.mark.parametrize(("arguments", "error"), BAD, ids=lambda value: str(value)[:30])
def test_bad_input_is_refused_in_one_sentence_and_the_model_is_as_it_was(recipe, arguments, error):
    model = net()
    before = state(model)
    with pytest.raises((TypeError, ValueError)) as raised:
        recipe(model, **arguments)
    assert str(raised.value) == error
    now = state(model)
    assert now[1] == before[1]
    assert all(
        a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in zip(now[0].values(), before[0].values(), strict=True)
    )


def test_weights_that_cannot_be_are_refused_before_any_is_touched():
    model = net()
    recipes.random_pruning(model, dim=5, include=["fc"])
    before = state(model)[1]
    for choice in ({"include": ["fc.weight"]}, {"include": ["fc"]}, {}):
        with pytest.raises(ValueError, match=r"^head.fc.weight must not be parametrized yet, got one that is$"):
            recipes.dctps(model, dim=5, **choice)
    mixed = net()
    mixed["head"].double()
    for recipe, bad in ((recipes.random_subspace, mixed), (recipes.sparse_finetuning, net())):
        if recipe is recipes.sparse_finetuning:
            bad["head"]["fc"].weight.data[0, 0] = float("inf")
        untouched = repr(bad)
        with pytest.raises(
            ValueError, match=r"one dtype and device, got another for head.fc.weight|must be finite, got 1"
        ):
            recipe(bad, dim=9)
        assert repr(bad) == untouched
    assert state(model)[1] == before


def test_recipes_explain_themselves():
    for recipe in BUDGETED:
        assert recipe.__doc__
        assert {"model", "density", "dim", "seed", "budget", "include"} <= set(inspect.signature(recipe).parameters)


def test_a_model_built_on_meta_is_registered_without_its_weights():
    with torch.device("meta"):
        model = nn.Linear(1 << 15, 1 << 15)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recipes.dctps(model, dim=1000)
    assert model.parametrizations.weight.original.shape == (1001,)
    assert model.parametrizations.weight.original.is_meta
