"""Recorded trajectories: their directions are those of a singular value decomposition, and span what was walked."""

import copy
import math
import re

import pytest
import torch
from torch import nn

from subspace import load, recipes, save, subspaces, summary
from subspace.embeddings import Given
from subspace.methods import Trajectory


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double()


def walked(points):
    model = net()
    trajectory, generator = Trajectory(model), torch.Generator().manual_seed(1)
    for _ in range(points):
        with torch.no_grad():
            for weight in model.parameters():
                weight += torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
        trajectory.record()
    return model, trajectory


def flat(point):
    return torch.cat([tensor.flatten() for tensor in point.values()])


@pytest.mark.parametrize("dim", [1, 3, 6])
def test_directions_are_the_singular_vectors_of_the_way(dim):
    _, trajectory = walked(6)
    found = torch.cat(list(trajectory.directions(dim).values()))
    way = torch.stack([flat(point) - flat(trajectory.points[0]) for point in trajectory.points[1:]])
    expected = torch.linalg.svd(way, full_matrices=False).Vh[:dim].T
    torch.testing.assert_close(found.T @ found, torch.eye(dim, dtype=torch.float64))
    torch.testing.assert_close(found @ found.T, expected @ expected.T)
    torch.testing.assert_close(found.abs(), expected.abs())
    assert ((way[-1] @ found) >= 0).all()


def test_a_lottery_subspace_starts_at_the_first_point_and_holds_every_other(tmp_path):
    _, trajectory = walked(4)
    model = recipes.lottery_subspace(copy.deepcopy(net()), trajectory, dim=4)
    assert summary(model).dim == 4
    rows = torch.cat(list(trajectory.directions(4).values()))
    for point in trajectory.points:
        with torch.no_grad():
            next(space for _, space in subspaces(model)).theta.copy_(
                rows.T @ (flat(point) - flat(trajectory.points[0]))
            )
        for name, tensor in point.items():
            torch.testing.assert_close(model.get_submodule(name.split(".")[0]).weight, tensor)
    save(model, tmp_path / "c")
    again = load(net(), tmp_path / "c")
    assert torch.equal(again(torch.ones(2, 5).double()), model(torch.ones(2, 5).double()))


def test_the_rows_of_one_tensor_stay_as_they_are_and_have_exact_coordinates():
    _, trajectory = walked(3)
    rows = trajectory.directions(3)["2.weight"]
    U = Given(torch.zeros(3, 4).double(), rows, of=32)
    theta = torch.tensor([1.0, -2.0, 0.5]).double()
    torch.testing.assert_close(U(theta).flatten(), rows @ theta)
    torch.testing.assert_close(U.coordinates(U(theta)), theta)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: walked(3)[1].directions(4), "dim must be in [1, 3], the independent directions of the points, got 4"),
        (lambda: walked(0)[1].directions(1), "a trajectory must have a point away from its first, got none in 1"),
        (
            lambda: recipes.lottery_subspace(nn.Linear(5, 4), walked(2)[1], dim=1),
            "the model must have a tensor that is chosen, got none among 2",
        ),
        (
            lambda: recipes.lottery_subspace(nn.Sequential(nn.Linear(5, 4)), walked(2)[1], dim=1),
            "the model must have the trajectory's tensors, got none like 2.weight",
        ),
        (
            lambda: Given(torch.zeros(2, 2), torch.full((4, 1), math.nan), of=9),
            "matrix must be rows of orthonormal columns, got one of length nan",
        ),
        (
            lambda: Given(torch.zeros(2, 2), torch.ones(4, 1), of=9),
            "matrix must be rows of orthonormal columns, got one of length 2",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, told):
    with pytest.raises(ValueError, match=f"^{re.escape(told)}$"):
        make()
