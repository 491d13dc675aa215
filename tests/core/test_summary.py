"""The summary counts what trains and what is stored, each number once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from subspace import Key, recipes, register, save, share, subspaces, summary
from subspace._base.index import packed_bytes
from subspace.embeddings import Direction, DirectSum, Embedding, Scaled, Sparse
from subspace.offsets import DCT, Zero


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(72, 10), nn.PReLU())


def test_totals_are_the_models():
    model = recipes.dctps(net(), density=0.1)
    s = summary(model)
    assert s.weights == 216 + 720
    assert (s.dim, s.alpha, s.density) == (round(0.1 * 936) + 2, 2, 94 / 936)
    assert s.beside == {"bias": 8 + 10, "norm": 16, "other": 1}
    assert s.dim + sum(s.beside.values()) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert s.trained_bytes == s.stored_bytes == 4 * s.dim
    assert [(row.name, row.dim) for row in s.rows] == [("0.weight", 48), ("3.weight", 48)]


def test_a_shared_theta_is_counted_once():
    s = summary(recipes.random_subspace(net(), dim=50))
    assert s.dim == 50
    assert [row.dim for row in s.rows] == [50, 50]
    assert s.trained_bytes == 200
    assert s.stored_bytes == 400  # and the normalisation of the columns


def test_alphas_of_a_shared_theta_are_counted_once():
    model = recipes.dctps(nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10)), density=0.1, seed=0)
    assert summary(model).alpha == 2
    share(model, theta := nn.Parameter(torch.zeros(11)))
    assert (summary(model).alpha, summary(model).dim) == (1, len(theta))


def test_a_chosen_index_is_stored_and_a_random_one_is_not():
    for chosen in (False, True):
        layer = nn.Linear(10, 10, bias=False)
        U = Sparse(layer.weight, index=torch.arange(0, 98, 14)) if chosen else Sparse(layer.weight, 7, key=Key(0))
        register(layer, "weight", DCT(layer.weight), U)
        s = summary(layer)
        assert (s.trained_bytes, s.stored_bytes) == (28, 28 + packed_bytes(7, 85) * chosen)
        assert s.beside == {}


def test_stored_bytes_are_the_checkpoints(tmp_path):
    from safetensors.torch import load_file

    for recipe in (recipes.dctps, recipes.random_subspace):
        model = recipe(net(), density=0.2)
        next(iter(subspaces(model)))
        save(model, tmp_path / "c")
        held = sum(t.nbytes for name, t in load_file(tmp_path / "c").items() if not name.startswith("state:"))
        assert summary(model).stored_bytes == held


def test_frozen_parameters_do_not_train():
    model = recipes.dctps(net(), density=0.1)
    model[1].requires_grad_(False)
    assert "norm" not in summary(model).beside


@pytest.mark.parametrize(
    "line", ["3.weight", "10 x 72", "Direction(DCT) + Sparse", "936 weights", "18 bias, 16 norm, 1 other"]
)
def test_the_table_can_be_read(line):
    text = str(summary(recipes.dctps(net(), density=0.1)))
    assert line in text
    widths = {len(row) for row in text.splitlines()[:3]}
    assert len(widths) == 1


def test_a_model_without_subspaces_has_an_empty_summary():
    s = summary(net())
    assert (s.weights, s.dim, s.density, s.rows) == (0, 0, 0.0, ())
    assert "total" in str(s)


@pytest.mark.parametrize("scaled", [False, True])
def test_an_alpha_is_counted_apart_however_it_is_wrapped(scaled):
    layer = nn.Linear(10, 10, bias=False)
    alpha: Embedding = Direction(DCT(layer.weight))
    U = DirectSum([Scaled(alpha, torch.ones(1)) if scaled else alpha, Sparse(layer.weight, 7, key=Key(0))])
    register(layer, "weight", Zero(layer.weight), U)
    assert (summary(layer).alpha, summary(layer).dim) == (1, 8)
