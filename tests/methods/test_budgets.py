"""Budgets: exact, within the tensors, nested; each as its paper says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Size

from subspace import budgets
from subspace._base.key import Key
from subspace.methods import blocks, rows
from subspace.methods.budgets import entries
from subspace.methods.groups import top_per_group

BUDGETS = [budgets.uniform, budgets.epl, budgets.epf, budgets.er, budgets.erk]
each_budget = pytest.mark.parametrize("budget", BUDGETS, ids=lambda budget: budget.__name__)
axes = st.lists(st.integers(1, 9), max_size=4).map(Size)
networks = st.lists(axes, min_size=1, max_size=6)
RESNET = [Size([64, 3, 3, 3]), Size([64, 64, 3, 3]), Size([256, 64, 1, 1]), Size([32, 1, 3, 3]), Size([100, 2048])]


@each_budget
@given(shapes=networks, fraction=st.floats(0, 1))
def test_is_exact_and_fits(budget, shapes, fraction):
    total = round(fraction * sum(shape.numel() for shape in shapes))
    counts = budget(shapes, total)
    assert sum(counts) == total
    assert all(0 <= count <= shape.numel() for count, shape in zip(counts, shapes, strict=True))


@each_budget
@given(shapes=networks)
def test_a_larger_total_takes_from_no_tensor(budget, shapes):
    numel = sum(shape.numel() for shape in shapes)
    before = budget(shapes, 0)
    for total in range(1, numel + 1, max(1, numel // 40)):
        now = budget(shapes, total)
        assert all(a <= b for a, b in zip(before, now, strict=True))
        before = now


@each_budget
def test_a_total_that_does_not_fit_is_an_error(budget):
    for total in (-1, 8):
        with pytest.raises(ValueError, match=r"total must be in \[0, 7\], got"):
            budget([Size([2, 2]), Size([3])], total)


def solved(raw, numels, total):
    """min(1, eps raw) with eps found by adding the largest to the dense ones, as google-research/rigl does it."""
    dense = np.zeros(len(raw), dtype=bool)
    while True:
        eps = (total - numels[dense].sum()) / (raw * numels)[~dense].sum()
        density = np.where(dense, 1.0, eps * raw)
        if (density <= 1 + 1e-12).all():
            return density * numels
        dense |= (raw == raw[~dense].max()) & ~dense


@given(shapes=st.lists(st.lists(st.integers(1, 9), min_size=2, max_size=4).map(Size), min_size=1, max_size=6))
@pytest.mark.parametrize("density", [0.01, 0.1, 0.35, 0.7, 0.99])
def test_erk_is_the_official_iteration(density, shapes):
    numels = np.array([shape.numel() for shape in shapes], dtype=float)
    raw = np.array([sum(shape) / shape.numel() for shape in shapes])
    total = round(density * numels.sum())
    assert np.abs(np.array(budgets.erk(shapes, total)) - solved(raw, numels, total)).max() < 1


def test_erk_makes_small_tensors_dense_and_er_leaves_kernels_out():
    total = round(0.2 * sum(shape.numel() for shape in RESNET))
    erk, er = budgets.erk(RESNET, total), budgets.er(RESNET, total)
    assert erk[3] == 32 * 9
    assert er[1] / er[2] == pytest.approx((64 + 64) * 9 / (256 + 64), rel=0.01)


def test_epl_is_equal_per_layer_and_redistributes():
    assert budgets.epl(RESNET, 500) == [100] * 5
    counts = budgets.epl(RESNET, 30000)
    assert [counts[0], counts[3]] == [1728, 288]  # full
    assert sorted([counts[1], counts[2], counts[4]]) == [9328, 9328, 9328]


@given(each=st.integers(0, 6), key=st.integers(0, 99))
def test_epf_gives_every_row_of_every_tensor_the_same(each, key):
    shapes = [Size([4, 9]), Size([7, 2, 3]), Size([5, 6, 1, 2])]
    counts = budgets.epf(shapes, 16 * each)
    assert counts == [4 * each, 7 * each, 5 * each]
    for shape, count in zip(shapes, counts, strict=True):
        index = top_per_group(scores(shape, key), count, rows(shape))
        assert np.bincount(index.numpy() // shape[1:].numel(), minlength=shape[0]).tolist() == [each] * shape[0]


@given(total=st.integers(0, 100), key=st.integers(0, 99))
def test_epf_is_within_one_where_the_total_does_not_divide(total, key):
    shapes = [Size([4, 9]), Size([7, 2, 3]), Size([5, 6, 1, 2])]
    for shape, count in zip(shapes, budgets.epf(shapes, total), strict=True):
        index = top_per_group(scores(shape, key), count, rows(shape))
        assert len(index.unique()) == count
        per_row = np.bincount(index.numpy() // shape[1:].numel(), minlength=shape[0])
        assert per_row.max() - per_row.min() <= 1


@pytest.mark.parametrize("shape", [(6, 8), (3, 8, 3, 3), (4, 4, 5), (2, 12)], ids=str)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_n_of_m_holds_in_every_block_of_inputs(shape, n):
    shape = Size(shape)
    index = top_per_group(scores(shape, 3), n * shape.numel() // 4, blocks(4)(shape))
    mask = np.zeros(shape, dtype=int)
    mask.flat[index.numpy()] = 1
    blocked = mask.reshape(shape[0], shape[1] // 4, 4, -1).sum(axis=2)  # 4 consecutive inputs of one filter and tap
    assert (blocked == n).all()


@given(few=st.integers(0, 72), more=st.integers(0, 72))
@pytest.mark.parametrize("groups", [rows, blocks(4), blocks(8)], ids=["rows", "blocks(4)", "blocks(8)"])
def test_spreading_is_nested(groups, few, more):
    shape = Size([3, 8, 3])
    few, more = sorted((few, more))
    small, large = (top_per_group(scores(shape, 5), count, groups(shape)).tolist() for count in (few, more))
    assert small == sorted(small)
    assert set(small) <= set(large)


def test_blocks_must_divide_the_inputs():
    with pytest.raises(ValueError, match=r"the number of inputs must be a multiple of 4, got shape \(2, 6, 3\)"):
        blocks(4)(Size([2, 6, 3]))


def scores(shape: Size, seed: int) -> torch.Tensor:
    return torch.from_numpy(Key(seed).uniform(shape.numel()))


@pytest.mark.parametrize(
    "asked, error, text",
    [
        ({}, TypeError, "exactly one of density and dim must be given, got density=None and dim=None"),
        ({"density": 0.0}, ValueError, "density must be in (0, 1], got 0.0"),
        ({"density": 0.001}, ValueError, "dim must be in [1, 100], got density=0.001, which is 0 entries"),
        ({"dim": 101}, ValueError, "dim must be in [1, 100], got dim=101"),
    ],
    ids=str,
)
def test_what_is_asked_for_must_be_there(asked, error, text):
    with pytest.raises(error) as raised:
        entries(100, asked.get("density"), asked.get("dim"))
    assert str(raised.value) == text
