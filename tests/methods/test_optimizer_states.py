"""What optimizers keep for an entry begins at 0 with it, whatever form it is kept in."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from subspace import recipes, subspaces
from subspace.embeddings import Sparse
from subspace.methods import SET, GradualPruning, RigL
from tests.methods.test_moving import train


def wide(optimizer, mover):
    """After five steps of one layer of 13,312 numbers: its subspace, and which slots have moved."""
    torch.manual_seed(0)
    model = mover[0](nn.Sequential(nn.Linear(256, 256)))
    made = optimizer(list(model.parameters()))
    moving = mover[1](model, made)
    x, y = torch.randn(8, 256), torch.randn(8, 256)
    ((_, space),) = subspaces(model)
    U, theta = space.embedding, space.theta
    before = U.index.clone() if isinstance(U, Sparse) else None
    train(model, made, moving, 5, lambda net: (net(x) - y).square().mean())
    moved = theta.detach() == 0 if before is None else before != U.index
    assert moved.any()
    return moved, theta.detach(), made.state[theta]


WIDE = {
    "RigL": (lambda m: recipes.rigl(m, dim=13_312), lambda m, o: RigL(m, o, t_end=100, delta_t=5)),
    "SET": (lambda m: recipes.set(m, dim=13_312), lambda m, o: SET(m, o, t_end=100, delta_t=5)),
    "gradual": (
        lambda m: recipes.ordinary(m, include=["0.weight"]),
        lambda m, o: GradualPruning(m, o, density=0.2, t_end=5, delta_t=5),
    ),
}


@pytest.mark.parametrize("mover", WIDE)
def test_moments_of_eight_bits_begin_at_zero(mover):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    moved, theta, state = wide(lambda p: bitsandbytes.optim.AdamW8bit(p, lr=1e-3), WIDE[mover])
    assert not theta[moved].any()
    for moment in "12":
        values = state[f"qmap{moment}"][state[f"state{moment}"].long()]
        assert not values[moved].any()
        assert values[~moved].any()


@pytest.mark.parametrize("mover", WIDE)
def test_several_moments_in_one_tensor_begin_at_zero(mover):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    moved, _, state = wide(lambda p: bitsandbytes.optim.AdEMAMix(p, lr=1e-3), WIDE[mover])
    assert state["state1"].shape == (2, len(moved))
    assert not state["state1"][:, moved].any()
    assert state["state1"][:, ~moved].any()


@pytest.mark.parametrize("mover", WIDE)
def test_moments_that_cannot_be_set_to_zero_are_refused_before_anything_moves(mover):
    torchao = pytest.importorskip("torchao.optim")
    found = []
    with pytest.raises(TypeError, match="optimizer must keep plain tensors of theta, got OptimState8bit in 'exp_avg'"):
        wide(lambda p: found.append(p) or torchao.AdamW8bit(p, lr=1e-3), WIDE[mover])
    assert all(p.detach().all() for p in found[0] if p.numel() > 256)
