"""Of every kind of module its weight matrices are known, and each gets what it would get by itself."""

from __future__ import annotations

import pytest
import torch
from scipy.fft import dct
from torch import nn

from subspace import Key, Layout, budgets, materialize, methods, recipes, set_layouts, structured, subspaces, targets
from subspace._base.layout import STANDARD
from subspace.embeddings import RowScale
from subspace.offsets import (
    DCT,
    BlockDCT,
    BlockHadamard,
    Gaussian,
    Haar,
    Hadamard,
    RankOne,
    SignedDCT,
    SignedHadamard,
    SignedPermutation,
)
from subspace.offsets.per_matrix import in_layout
from tests.support.cases import rest_slow
from tests.support.kinds import KINDS, Conv1D, Named

pytestmark = pytest.mark.filterwarnings("ignore:the budget of")
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
BUDGETS = [budgets.uniform, budgets.epl, budgets.epf, budgets.er, budgets.erk]


def made(kind):
    torch.manual_seed(0)
    return kind.make().double()


def weight(kind, model):
    prefix, _, name = kind.tensor.rpartition(".")
    return getattr(model.get_submodule(prefix), name).detach()


@each_kind
def test_its_matrices_are_those_that_it_computes_with(kind):
    model = made(kind)
    target = targets(model)[kind.tensor]
    by_hand = kind.matrices(target.weight.detach())
    of_layout = target.layout.to_matrix(target.weight.detach()).reshape(-1, *by_hand[0].shape)
    torch.testing.assert_close(kind.by_hand(model, by_hand), kind.call(model))
    torch.testing.assert_close(of_layout, torch.stack(by_hand))
    assert target.layout.matrices(target.weight.shape) == len(by_hand)


@each_kind
def test_dctps_starts_each_of_them_from_the_dct(kind):
    model = recipes.dctps(made(kind), density=0.1)
    for matrix in kind.matrices(weight(kind, model)):
        n_out, n_in = matrix.shape
        expected = torch.from_numpy(dct(torch.eye(max(matrix.shape)).double().numpy(), norm="ortho")).T[:n_out, :n_in]
        torch.testing.assert_close(matrix, expected)
        fewer = matrix if n_out <= n_in else matrix.T
        torch.testing.assert_close(fewer @ fewer.T, torch.eye(len(fewer), dtype=torch.float64))


@each_kind
@pytest.mark.parametrize(
    "offset", rest_slow([SignedDCT, RankOne, SignedHadamard, BlockDCT, SignedPermutation], [SignedDCT])
)
def test_a_drawn_offset_is_for_each_of_them_what_it_would_be_by_itself(kind, offset):
    recipe = recipes.offset_plus_sparse(lambda w, key: offset(w, key=key))
    model, key = recipe(made(kind), density=0.1), Key(0).fold(kind.tensor)
    matrices = kind.matrices(weight(kind, model))
    for number, matrix in enumerate(matrices):
        one = offset(matrix, key=key.fold(str(number)) if len(matrices) > 1 else key)()
        if kind.name.endswith("convolution"):  # which may have a sign for a channel and not for each tap
            matrix, one = matrix.abs(), one.abs()
        if not (kind.name.endswith("convolution") and offset is RankOne):
            torch.testing.assert_close(matrix, one)


@each_kind
def test_an_initialisation_has_their_fan(kind):
    model = made(kind)
    target, n_in = targets(model)[kind.tensor], kind.matrices(weight(kind, model))[0].shape[1]
    assert Gaussian(target.weight, key=Key(0), layout=target.layout).std == pytest.approx((2 / n_in) ** 0.5)
    d = dict(subspaces(recipes.freezenet(model, density=0.1)))[kind.tensor].offset
    assert d.layout == target.layout


@each_kind
def test_scaled_rows_are_the_outputs_of_each(kind):
    target = targets(made(kind))[kind.tensor]
    U = RowScale(in_layout(DCT(target.weight), target.layout), scale=1.0)
    by_hand = kind.matrices(U(torch.arange(1.0, U.dim + 1).double()))
    rows, plain = torch.cat(by_hand), torch.cat(kind.matrices(U(torch.ones(U.dim).double())))
    assert U.dim == len(rows)
    torch.testing.assert_close(rows, torch.arange(1.0, U.dim + 1).double().unsqueeze(1) * plain)


@each_kind
@pytest.mark.parametrize("budget", rest_slow(BUDGETS, list(BUDGETS)[:2]))
def test_budgets_count_them_as_if_they_were_apart(kind, budget):
    inside, linear, density = made(kind), nn.Linear(5, 7).double(), 0.4
    apart = [nn.Linear(*reversed(m.shape)).double() for m in kind.matrices(weight(kind, inside))]
    if kind.name.endswith("convolution"):
        apart = [nn.Conv1d(4, 6, 2).double()]
    one = recipes.random_pruning(nn.ModuleList([inside, linear]), density=density, budget=budget, include=names(kind))
    other = recipes.random_pruning(nn.ModuleList([*apart, nn.Linear(5, 7).double()]), density=density, budget=budget)
    counts = [space.theta.numel() for _, space in subspaces(other)]
    assert [s.theta.numel() for _, s in subspaces(one)] == [sum(counts[:-1]), counts[-1]]


def names(kind):
    return [f"0.{kind.tensor}", "1.weight"]


@each_kind
def test_groups_are_of_their_rows_and_inputs(kind):
    ones = {"density": 0.5, "include": [kind.tensor]}
    rows, blocks = (recipes.random_pruning(made(kind), groups=g, **ones) for g in (methods.rows, methods.blocks(2)))
    for matrix in kind.matrices(weight(kind, rows)):
        counts = (matrix != 0).sum(1)
        assert counts.max() - counts.min() <= 1
    for matrix in kind.matrices(weight(kind, blocks)):
        kept = (matrix != 0).unflatten(1, (-1, 2)) if matrix.shape[1] % 2 == 0 else (matrix != 0).unsqueeze(1)
        assert (kept.sum(2) == 1).all()


@each_kind
def test_they_train_and_come_out_dense(kind):
    model = recipes.dctps(made(kind), density=0.3)
    for _, space in subspaces(model):
        space.theta.data += 0.1
    y = kind.call(model)
    y.sum().backward()
    assert dict(subspaces(model))[kind.tensor].theta.grad.abs().sum() > 0
    plain = materialize(model)
    torch.testing.assert_close(kind.call(plain), y)
    torch.testing.assert_close(kind.by_hand(plain, kind.matrices(weight(kind, plain))), y)


@pytest.mark.parametrize("offset", [DCT, SignedDCT, Hadamard, RankOne, Haar, BlockHadamard])
def test_a_layer_of_several_matrices_needs_no_weight_either(offset):
    recipe = recipes.offset_plus_sparse(lambda w, key: offset(w, key=key))
    model = recipe(nn.ModuleDict({"qkv": nn.Linear(16, 48)}).double(), density=0.05)
    space = dict(subspaces(model))["qkv.weight"]
    space.theta.data += torch.linspace(-1, 1, len(space.theta)).double()
    x = torch.randn(3, 16, dtype=torch.float64)
    expected = model["qkv"](x)
    reads = []
    structured(model)
    space.parametrization.register_forward_hook(lambda *_: reads.append(1))
    torch.testing.assert_close(model["qkv"](x), expected)
    assert not reads


@pytest.mark.parametrize(
    ("layouts", "message"),
    [
        ({"tabel": STANDARD}, r"layouts must name tensors of the model, got 'tabel', which matches none"),
        ({"table": Layout(outputs=(0, 0))}, r"layout must name each axis once, counted from 0, got"),
        ({"table": Layout(blocks=3)}, r"layout must divide the outputs of shape \(4, 2, 6\) by blocks, got 3"),
    ],
)
def test_a_layout_that_cannot_be_is_refused_and_none_is_told(layouts, message):
    model = Named()
    with pytest.raises(ValueError, match=message):
        set_layouts(model, layouts)
    with pytest.raises(ValueError, match="the model must have a tensor that is chosen, got none among 1"):
        targets(model)


def test_layouts_may_be_told_by_a_function():
    model = nn.ModuleList([Named(), Conv1D(3, 2)])
    set_layouts(model, lambda name, w: Layout.parse("in batch out") if w.ndim == 3 else None)
    assert {name: t.layout.fans(t.weight.shape) for name, t in targets(model).items()} == {
        "0.table": (6, 4),
        "1.weight": (3, 2),
    }


def test_axes_have_four_names():
    assert Layout.parse("batch out tap in") == Layout((1,), (3,), (0,))
    with pytest.raises(ValueError, match="axes must be called out, in, batch, tap, got 'inn'"):
        Layout.parse("out inn")
