"""A layout says how a tensor is a matrix: there and back, as its module's map, and as offsets take it."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Size, nn

from subspace import Key, Layout, embeddings, load, recipes, register, save, set_layouts, subspaces, targets, tune
from subspace._base.layout import STANDARD
from subspace.embeddings import Basis, Sparse
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
from tests.support.strategies import numbers, shapes

TRANSPOSED = Layout(outputs=(1,), inputs=(0,))
OFFSETS = [DCT, SignedDCT, Hadamard, SignedHadamard, Haar, BlockHadamard, BlockDCT, SignedPermutation, RankOne]


@st.composite
def layouts(draw):
    """A shape of up to five axes, and a layout that gives some of them a part."""
    shape = Size(draw(st.lists(st.integers(1, 4), min_size=1, max_size=5)))
    axes = draw(st.permutations(range(len(shape))))
    cuts = sorted(draw(st.lists(st.integers(0, len(shape)), min_size=3, max_size=3)))
    outputs, inputs, batch = (tuple(axes[a:b]) for a, b in zip([0, *cuts[:2]], cuts, strict=True))
    return shape, Layout(outputs, inputs, batch)


@given(layouts())
def test_a_weight_is_a_matrix_and_back(case):
    shape, layout = case
    weight = numbers(0, *shape)
    matrix = layout.to_matrix(weight)
    assert matrix.shape[-2:] == layout.fans(shape)
    assert layout.fans(shape)[1] == layout.taps(shape) * layout.channels(shape)
    assert torch.equal(layout.from_matrix(matrix, shape), weight)


@given(layouts())
def test_one_matrix_may_be_that_of_a_whole_batch(case):
    shape, layout = case
    matrix = numbers(0, *layout.fans(shape))
    assert all(
        torch.equal(one, matrix) for one in layout.to_matrix(layout.from_matrix(matrix, shape)).view(-1, *matrix.shape)
    )


def test_the_standard_layout_is_a_convolutions():
    weight = numbers(0, 5, 3, 2, 4)
    patches = nn.functional.unfold(x := numbers(1, 2, 3, 7, 6), (2, 4)).view(2, 3, 8, -1).transpose(1, 2).flatten(1, 2)
    y = nn.functional.conv2d(x, weight).flatten(2)
    torch.testing.assert_close(STANDARD.to_matrix(weight) @ patches, y)


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(4, 7),
        nn.Conv1d(4, 7, 1),
        nn.Conv2d(4, 7, 1),
        nn.Conv3d(4, 7, 1),
        nn.ConvTranspose1d(4, 7, 1),
        nn.ConvTranspose2d(4, 7, 1),
        nn.ConvTranspose3d(4, 7, 1),
    ],
    ids=lambda module: type(module).__name__,
)
def test_a_targets_layout_gives_its_modules_map(module):
    (target,) = targets(module.double()).values()
    x = numbers(0, 3, 4)
    y = module(x.reshape(3, 4, *(1 for _ in target.weight.shape[2:]))).flatten(1) - module.bias
    assert target.layout.fans(target.weight.shape) == (7, 4)
    torch.testing.assert_close(x @ target.layout.to_matrix(target.weight).T, y)


@pytest.mark.parametrize("offset", OFFSETS)
@given(shape=shapes)
def test_an_offset_is_the_same_matrix_in_every_layout(offset, shape):
    like = numbers(0, *(shape if len(shape) > 1 else (*shape, 1)))
    d, other = offset(like, key=Key(0)), offset(like.transpose(0, 1), key=Key(0), layout=TRANSPOSED)
    assert d.fans == other.fans
    torch.testing.assert_close(TRANSPOSED.to_matrix(other()), STANDARD.to_matrix(d()), rtol=1e-12, atol=1e-12)
    if len(shape) == 2:
        x = numbers(1, 3, shape[1])
        torch.testing.assert_close(other.linear(x), d.linear(x))


SEVERAL = {
    "experts": ((3, 5, 4), Layout.parse("batch out in")),
    "experts from the right": ((3, 4, 6), Layout.parse("batch in out")),
    "inputs first": ((4, 7), TRANSPOSED),
    "fused": ((12, 5), Layout(blocks=3)),
    "transposed convolution": ((3, 4, 2, 3), Layout.parse("in out tap tap")),
}


@pytest.mark.parametrize("case", SEVERAL)
@pytest.mark.parametrize("over", ["matrix", "filters"])
@pytest.mark.parametrize("basis", [embeddings.DCT, embeddings.Haar, embeddings.Hadamard])
def test_each_matrix_of_a_tensor_has_coefficients_of_its_own(basis, over, case):
    shape, layout = SEVERAL[case]
    like, c = numbers(0, *shape), numbers(1, Size(shape).numel())
    several, one = basis(like, over=over, layout=layout), basis(numbers(0, *layout.convolution(like.shape)), over=over)
    coefficients = layout.to_matrix(c.reshape(shape)).reshape(-1, *one.fans)
    expected = [STANDARD.to_matrix(one(STANDARD.from_matrix(each, one.shape).flatten())) for each in coefficients]
    w = several(c)
    torch.testing.assert_close(layout.to_matrix(w).reshape(-1, *one.fans), torch.stack(expected))
    torch.testing.assert_close(several.adjoint(w), c)
    U, theta = Basis(several, Sparse(like, 9, key=Key(0))), numbers(2, 9)
    if len(shape) == 2:
        x = numbers(3, 3, layout.fans(like.shape)[1])
        torch.testing.assert_close(U.linear(theta, x), x @ layout.to_rows(U(theta)).T)


@pytest.mark.parametrize("recipe", [tune.basis, recipes.random_pruning, recipes.magnitude])
def test_a_basis_is_made_for_each_matrix_wherever_one_is_asked_for(recipe, tmp_path):
    def module():
        torch.manual_seed(0)
        experts = nn.Module()
        experts.up = nn.Parameter(torch.randn(3, 6, 4))
        return set_layouts(experts, {"up": Layout.parse("batch in out")})

    option = {"transform": embeddings.DCT} if recipe is tune.basis else {"basis": embeddings.DCT}
    net = recipe(module(), dim=20, **option)
    ((_, space),) = subspaces(net)
    assert space.embedding.transform.layout == space.embedding.layout == Layout.parse("batch in out")
    space.theta.data.normal_()
    save(net, tmp_path / "file")
    assert torch.equal(load(module(), tmp_path / "file").up, net.up)


def test_the_fans_of_an_initialisation_are_the_layouts():
    like = torch.empty(4, 6, 3)
    for fan in ("in", "out", "average"):
        std = Gaussian(like, key=Key(0), fan=fan).std
        assert Gaussian(like.transpose(0, 1), key=Key(0), fan=fan, layout=TRANSPOSED).std == std


@pytest.mark.parametrize("offset, alike", list(itertools.product([DCT, SignedDCT], [True, False])))
def test_a_checkpoint_knows_the_layout(offset, alike, tmp_path):
    def make(layout):
        module = nn.Linear(6, 4)
        like = module.weight
        register(module, "weight", offset(like, key=Key(0), layout=layout), Sparse(like, 5, key=Key(1)))
        return module

    module = make(TRANSPOSED if alike else STANDARD)
    save(module, tmp_path / "c")
    again = load(nn.Linear(6, 4), tmp_path / "c")
    assert torch.equal(again.weight, module.weight)
    assert next(subspaces(again))[1].offset.layout == (TRANSPOSED if alike else STANDARD)
