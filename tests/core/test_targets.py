"""What recipes take and leave: every weight matrix, nothing frozen; what is left out is listed with its reason."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from subspace import recipes, structured, subspaces, summary, targets
from subspace.offsets import Pretrained


class Net(nn.Module):
    """One of everything."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(9, 8), nn.LayerNorm(8)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.scale = nn.Parameter(torch.ones(8))
        self.body = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        self.attention, self.recurrent = nn.MultiheadAttention(8, 2), nn.LSTM(8, 8)
        self.head = nn.Linear(8, 9, bias=False)
        self.head.weight = self.table.weight
        self.classifier = nn.Linear(8, 3)


PRETRAINED = {
    "sparse-finetuning": recipes.sparse_finetuning,
}
each_pretrained = pytest.mark.parametrize("recipe", PRETRAINED.values(), ids=PRETRAINED)


def test_every_tensor_is_registered_or_left_out_for_a_reason():
    net = Net()
    names = {name for name, _ in net.named_parameters(remove_duplicate=False)}
    net.body[0].requires_grad_(False)
    recipes.dctps(net, density=0.1, exclude=["classifier"])
    found = summary(net)
    left = {each.name: each.why for each in found.left_out}
    assert len(left) == len(found.left_out)
    assert left.keys() | {row.name for row in found.rows} == names
    assert not left.keys() & {row.name for row in found.rows}
    assert {name: why for name, why in left.items() if why not in ("bias", "norm")} == {
        "token": "no known layout",
        "scale": "other",
        "table.weight": "tied to head.weight",
        "body.0.weight": "frozen",
        "classifier.weight": "not chosen",
    }
    assert {name for name, why in left.items() if why == "norm"} == {"norm.weight"}
    text, html = str(found), found._repr_html_()
    assert "left out, frozen: body.0.weight\n" in text
    assert html.startswith("<table><thead><tr><th>tensor</th>")
    assert all(name in html for name in ("body.2.weight", "left out, not chosen: classifier.weight"))


def test_a_matrix_of_integers_is_left_out():
    net = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    net[0].weight = nn.Parameter(torch.ones(3, 3, dtype=torch.int8), requires_grad=False)
    recipes.dctps(net, density=0.5)
    assert [each.why for each in summary(net).left_out] == ["not floating-point", "bias", "bias"]


def test_what_was_frozen_stays_as_it_was():
    for recipe in (recipes.dctps, recipes.random_pruning, recipes.sparse_finetuning, recipes.freezenet):
        net = Net()
        net.body.requires_grad_(False)
        before = net.body[0].weight.clone()
        recipe(net, density=0.1)
        assert not {"body.0.weight", "body.2.weight"} & {name for name, _ in subspaces(net)}
        assert torch.equal(net.body[0].weight, before)
        assert not net.body[0].weight.requires_grad


def test_a_model_that_is_all_frozen_says_how_to_go_on():
    net = Net().requires_grad_(False)
    with pytest.raises(ValueError, match=r"got none among 20: 8 are frozen, and can be named by include$"):
        recipes.dctps(net, density=0.1)
    recipes.sparse_finetuning(net, density=0.1, include=["body.0"])
    assert [name for name, _ in subspaces(net)] == ["body.0.weight"]


@each_pretrained
def test_a_recipe_for_pretrained_models_trains_nothing_else(recipe):
    net = recipe(Net(), density=0.1)
    thetas = {id(space.theta) for _, space in subspaces(net)}
    assert {id(p) for p in net.parameters() if p.requires_grad} == thetas
    assert summary(net).beside == {}


def subspace_of_the_present(model, **options):
    return recipes.random_subspace(model, offset=lambda w, key: Pretrained(w), dim=20, also_train=options["also_train"])


ANY = [*PRETRAINED.values(), recipes.dctps, subspace_of_the_present]


@pytest.mark.parametrize("recipe", ANY, ids=lambda recipe: recipe.__name__)
@pytest.mark.parametrize(
    ("also", "free"),
    [
        (["classifier"], {"classifier.weight", "classifier.bias"}),
        (["classifier.bias", "norm"], {"classifier.bias", "norm.weight", "norm.bias"}),
        (r"body\..*bias", {"body.0.bias", "body.2.bias"}),
        (lambda name, p: name == "token", {"token"}),
        ((), set()),
    ],
)
def test_what_is_also_trained_is_no_target_and_all_else_is_frozen(recipe, also, free):
    net = Net()
    net.body[2].requires_grad_(False)
    net = recipe(net, density=0.1, also_train=also)
    names = dict(subspaces(net))
    assert not free & names.keys()
    trained = {name for name, p in net.named_parameters() if p.requires_grad and not name.endswith("original")}
    assert trained == {name for name in free if not name.startswith("body.2")}


def test_a_name_that_nothing_is_in_is_refused_and_the_model_is_as_it_was():
    net = Net()
    with pytest.raises(ValueError, match="also_train must name tensors of the model, got 'clasifier', which none is"):
        recipes.sparse_finetuning(net, density=0.1, also_train=["clasifier"])
    for argument in ("also_train", "include", "exclude"):
        with pytest.raises(ValueError, match=f"{argument} must match whole names of tensors .*'lassifier'"):
            recipes.sparse_finetuning(net, density=0.1, **{argument: "lassifier"})
    assert not list(subspaces(net))
    assert all(p.requires_grad for p in net.parameters())


def test_an_attention_never_calls_its_output_layer_and_says_so():
    net = structured(recipes.dctps(nn.MultiheadAttention(64, 2), density=0.05))
    rows = {row.name: row for row in summary(net).rows}
    assert rows["out_proj.weight"].route is None
    assert "reads the weight and never calls the layer" in rows["out_proj.weight"].plain_because


@pytest.mark.parametrize("options", [{"sparse": True}, {"max_norm": 1.0}, {"padding_idx": 0}])
def test_an_embedding_table_trains_whatever_its_gradient(options):
    net = nn.Embedding(9, 8, **options)
    rows = torch.tensor([1, 2])
    before = net(rows).detach()
    recipes.sparse_finetuning(net, density=0.5, include=["weight"])
    torch.testing.assert_close(net(rows), before)
    net(rows).sum().backward()
    assert next(subspaces(net))[1].theta.grad.abs().sum() > 0
    assert list(targets(nn.Linear(2, 2))) == ["weight"]
