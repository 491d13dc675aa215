"""alpha of w = alpha d + S: where it starts, where decay brings it, and how far a step moves it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from subspace import Key, SubspaceParametrization, recipes, subspaces
from subspace.embeddings import Direction, DirectSum, Sparse
from subspace.offsets import DCT, Gaussian, Hadamard, Offset, RankOne, SignedDCT, Zero
from tests.support.cases import each_with_one, rest_slow
from tests.support.strategies import numbers

close = torch.testing.assert_close
OFFSETS = {
    "dct": lambda w, key: DCT(w, gain=1.5),
    "signed": lambda w, key: SignedDCT(w, key=key),
    "hadamard": lambda w, key: Hadamard(w),
    "rank one": lambda w, key: RankOne(w, key=key),
    "gaussian": lambda w, key: Gaussian(w, key=key),
}
NORMALISED = {  # a step of each is about as long whatever the gradient's size is
    "adam": lambda p: torch.optim.Adam(p, 0.01, eps=1e-30),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, eps=1e-30),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, eps=1e-30),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.01, eps=1e-30),
}
PROPORTIONAL = {
    "sgd": lambda p: torch.optim.SGD(p, 0.01),
    "momentum": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, nesterov=True),
}
DECAYED = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, weight_decay=0.1),
    "momentum": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.1),
}


def made(offset: str, *, scale: float = 1.0, anchored: bool = True):
    net = nn.Sequential(nn.Linear(12, 8, bias=False).double())
    recipes.offset_plus_sparse(OFFSETS[offset], scale=scale, anchored=anchored)(net, density=0.2)
    ((_, space),) = subspaces(net)
    return net, space


def alpha(space) -> Tensor:
    """What the dense weight is times d, where S is 0."""
    (line, sparse) = space.embedding.parts()
    outside = torch.ones(space.shape.numel(), dtype=torch.bool)
    outside[sparse.index] = False
    w, d = getattr(space.module, space.name).detach().flatten()[outside], line.offset().flatten()[outside]
    found = w @ d / (d @ d)
    close(w, found * d)
    return found


@pytest.mark.parametrize("offset, optimizer", each_with_one(OFFSETS, [*NORMALISED, *PROPORTIONAL]))
@pytest.mark.parametrize("rate", [0.1, 3.0, 10.0])
def test_one_step_moves_alpha_rate_times_as_far(offset, optimizer, rate):
    make, scale = (NORMALISED[optimizer], rate) if optimizer in NORMALISED else (PROPORTIONAL[optimizer], rate**0.5)
    moved = []
    for each in (1.0, scale):
        net, space = made(offset, scale=each)
        close(alpha(space), torch.ones((), dtype=torch.float64))
        step = make(net.parameters())
        net(numbers(1, 5, 12)).square().sum().backward()
        step.step()
        moved.append(alpha(space) - 1)
    assert moved[0] != 0
    close(moved[1], rate * moved[0], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("offset, optimizer", each_with_one(OFFSETS, DECAYED))
@pytest.mark.parametrize("scale", rest_slow([1.0, 0.3, 4.0], [0.3]))
@pytest.mark.parametrize("anchored", [True, False])
def test_without_a_gradient_decay_brings_alpha_to_its_start_or_if_asked_to_0(offset, optimizer, scale, anchored):
    net, space = made(offset, scale=scale, anchored=anchored)
    with torch.no_grad():
        space.theta[0] += 0.5 / scale
    close(alpha(space), torch.tensor(1.5, dtype=torch.float64))
    step = DECAYED[optimizer](net.parameters())
    for _ in range(1500):
        space.theta.grad = torch.zeros_like(space.theta)
        step.step()
    close(alpha(space), torch.tensor(float(anchored), dtype=torch.float64), rtol=0, atol=0.05)


@pytest.mark.parametrize("recipe", [recipes.dctps, recipes.dctps_rigl, recipes.dctps_set])
def test_dctps_starts_with_a_theta_of_zeros_which_decay_leaves_alone(recipe):
    net = recipe(nn.Sequential(nn.Linear(12, 8)), density=0.2)
    ((_, space),) = subspaces(net)
    assert not space.theta.any()
    close(net[0].weight, DCT(net[0].weight)())


MULTIPLES = {
    "dct": DCT,
    "hadamard": Hadamard,
    "signed": lambda w, gain: SignedDCT(w, key=Key(0), gain=gain),
    "zero": lambda w, gain: Zero(w),
}


@pytest.mark.parametrize("offset", MULTIPLES.values(), ids=MULTIPLES)
@given(st.floats(-3, 3), st.floats(0.1, 3), st.sampled_from([1.0, -0.5, 7.0]), st.booleans())
def test_an_offset_that_is_a_multiple_of_a_column_is_added_all_the_same(offset, gain, other, scale, first):
    like = numbers(0, 6, 9)
    d: Offset = offset(like, gain=gain)
    parts = [Direction(DCT(like, gain=other), scale), Sparse(like, 7, key=Key(1))]
    U = DirectSum(parts if first else parts[::-1])
    theta = numbers(2, 8)
    close(SubspaceParametrization(d, U)(theta), d() + U(theta))
    close(SubspaceParametrization(d, U).nearest(d() + U(theta)), theta)


@pytest.mark.parametrize("scale", [0.0, float("nan"), float("inf")])
def test_a_column_without_a_length_is_refused(scale):
    with pytest.raises(ValueError, match="scale must be finite and not zero, got"):
        Direction(DCT(torch.empty(3, 3)), scale)
