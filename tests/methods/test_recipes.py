"""Recipes that choose U: each is its method's index, at the start it names; bad input leaves the model as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from subspace import Key, budgets, materialize, methods, recipes, subspaces
from subspace.embeddings import Sparse
from subspace.methods import blocks, flow, rows
from subspace.offsets import DCT, Gaussian

pytestmark = pytest.mark.filterwarnings("ignore:the budget of")
X = torch.from_numpy(Key(7).normal(8 * 64)).float().reshape(8, 1, 8, 8)
Y = torch.arange(8) % 3
ONES = flow(1, 1, 8, 8)


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(
            *(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3, groups=2), nn.AdaptiveAvgPool2d(2), nn.Flatten()),
            nn.Linear(32, 3),
        )


def loss(model: nn.Module) -> Tensor:
    return cross_entropy(model(X), Y)


def supports(model: nn.Module) -> dict[str, list[int]]:
    return {
        q: part.index.tolist()
        for q, space in subspaces(model)
        for part in space.parametrization.modules()
        if isinstance(part, Sparse)
    }


PRUNED = {
    "magnitude": (recipes.magnitude, lambda m: methods.supports(m, methods.magnitude, None, 0.2)),
    "snip": (lambda m, **o: recipes.snip(m, loss, **o), lambda m: methods.supports(m, methods.snip, loss, 0.2)),
    "grasp": (lambda m, **o: recipes.grasp(m, loss, **o), lambda m: methods.supports(m, methods.grasp, loss, 0.2)),
    "iterative_snip": (
        lambda m, **o: recipes.iterative_snip(m, loss, **o),
        lambda m: methods.supports(m, methods.snip, loss, 0.2, steps=60),
    ),
    "force": (lambda m, **o: recipes.force(m, loss, **o), lambda m: methods.force(m, loss, 0.2, steps=60)),
    "synflow": (
        lambda m, **o: recipes.synflow(m, ONES, **o),
        lambda m: methods.supports(m, methods.synflow, ONES, 0.2, steps=100),
    ),
}


@pytest.mark.parametrize(("recipe", "reference"), PRUNED.values(), ids=PRUNED)
def test_a_pruned_network_keeps_its_weights_where_the_method_says(recipe, reference):
    model, before = net(), net()
    assert recipe(model, density=0.2) is model
    kept = {q: index.tolist() for q, index in reference(before).items()}
    assert supports(model) == kept
    assert sum(map(len, kept.values())) == round(0.2 * 276)
    for q, w in materialize(model).named_parameters():
        dense = dict(before.named_parameters())[q].detach().flatten()
        mask = torch.zeros_like(dense)
        mask[kept.get(q, slice(None))] = 1
        assert torch.equal(w.flatten().detach(), dense * mask)


def test_all_methods_differ():
    indices = [str(supports(recipe(net(), density=0.2))) for recipe, _ in PRUNED.values()]
    assert len(set(indices)) == len(indices)


@pytest.mark.parametrize(("recipe", "_"), PRUNED.values(), ids=PRUNED)
def test_pruning_takes_include_budget_and_groups(recipe, _):
    model = recipe(net(), dim=24, budget=budgets.epf, groups=rows, include=["2", "5"])
    kept = supports(model)
    assert list(map(len, kept.values())) == budgets.epf([torch.Size([8, 2, 3, 3]), torch.Size([3, 32])], 24)
    assert torch.bincount(torch.tensor(kept["2.weight"]) // 18).max() == 3


def slopes(d: dict[str, Tensor]) -> Tensor:
    """The gradient at these weights, of a plain network."""
    model = net()
    model.load_state_dict(d, strict=False)
    weights = [p for p in model.parameters() if p.ndim > 1]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss(model), weights)])


def first(model: nn.Module) -> dict[str, Tensor]:
    return {q: w.detach() for q, w in materialize(model).named_parameters() if w.ndim > 1}


@pytest.mark.parametrize(
    ("recipe", "d", "score"),
    [
        (recipes.dctps, lambda w, key: DCT(w)(), lambda g, w: g.abs()),
        (recipes.freezenet, lambda w, key: Gaussian(w, key=key.fold("d"))(), lambda g, w: (g * w).abs()),
        (recipes.sparse_finetuning, lambda w, key: w, lambda g, w: g.abs()),
        (recipes.random_pruning, lambda w, key: w, lambda g, w: (g * w).abs()),
    ],
)
def test_a_recipe_with_an_objective_scores_at_its_own_start(recipe, d, score):
    """DCTpS and fine-tuning by |g| at w = d, FreezeNet by SNIP at w = d."""
    start = {q: d(w.detach(), Key(3).fold(q)) for q, w in net().named_parameters() if w.ndim > 1}
    w = torch.cat([t.flatten() for t in start.values()])
    best = score(slopes(start), w).argsort(descending=True)[:40].tolist()
    model = recipe(net(), dim=40, seed=3, objective=loss)
    starts = dict(zip(start, (0, 36, 180), strict=True))
    got = [starts[q] + place for q, places in supports(model).items() for place in places]
    assert sorted(got) == sorted(best)
    if recipe is not recipes.random_pruning:
        assert all(torch.equal(w, start[q]) for q, w in first(model).items())  # S = 0


def test_saliency_and_budget_can_be_chosen():
    chosen = recipes.dctps(net(), dim=40, objective=loss, saliency=methods.random(Key(1)), budget=budgets.epl)
    kept = methods.select(methods.random(Key(1))(net()), dim=40, budget=budgets.epl)
    assert supports(chosen) == {q: index.tolist() for q, index in kept.items()}


@pytest.mark.parametrize("recipe", [recipes.random_pruning, recipes.dctps, recipes.freezenet])
def test_random_supports_in_groups_are_nested_and_keyed(recipe):
    def places(dim, seed=0):
        return supports(recipe(net(), dim=dim, seed=seed, budget=budgets.epf, groups=rows))

    few, many, other = places(30), places(45), places(45, seed=1)
    assert all(set(few[q]) <= set(many[q]) for q in few)
    assert all(many[q] != other[q] for q in many)
    for q, shape in (("0.weight", (4, 9)), ("2.weight", (8, 18)), ("5.weight", (3, 32))):
        assert torch.bincount(torch.tensor(many[q]) // shape[1], minlength=shape[0]).tolist() == [3] * shape[0]
    model = recipe(net(), density=0.5, groups=blocks(4), budget=budgets.uniform, include=["5"])
    assert torch.bincount(torch.tensor(supports(model)["5.weight"]) // 4).tolist() == [2] * 24


@pytest.mark.parametrize(
    "call",
    [
        lambda m: recipes.snip(m, lambda net: loss(net) * torch.nan, density=0.2),
        lambda m: recipes.dctps(m, density=0.2, objective=lambda net: loss(net) * torch.nan),
        lambda m: recipes.freezenet(m, density=0.2, objective=lambda net: net(X)),
        lambda m: recipes.random_pruning(m, density=0.2, groups=blocks(4)),
        lambda m: recipes.imp(m, lambda net: net.missing, density=0.2),
        lambda m: recipes.force(m, loss, density=0.2, steps=0),
    ],
)
def test_on_an_error_the_model_is_as_it_was(call):
    model = net()
    before = [(n, id(p), p.data_ptr(), p.requires_grad, p.tolist()) for n, p in model.named_parameters()]
    with pytest.raises((ValueError, FloatingPointError, AttributeError)):
        call(model)
    assert [(n, id(p), p.data_ptr(), p.requires_grad, p.tolist()) for n, p in model.named_parameters()] == before
