"""Two processes with a batch each decide as one process does that has both: moves, and saliencies at initialization."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from subspace import methods, recipes, structured, subspaces
from subspace.methods import GradualPruning, LotteryTicket, RigL, constant, growth
from tests.methods.test_moving import MOVERS, STARTS, mlp, parts

pytestmark = pytest.mark.torchrun
X = torch.linspace(-1, 2, 24 * 64, dtype=torch.float64).mul(7).sin().reshape(24, 64)
Y = torch.arange(24) % 3
BATCHES = list(zip(X.tensor_split(2), Y.tensor_split(2), strict=True))


class Experts(nn.Module):
    """Each half of the batches goes through one of two layers, and none through a third."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.unused = (nn.Linear(64, 20) for _ in range(3))
        self.head = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.first if torch.equal(x, BATCHES[0][0]) else self.second)(x).relu())


def experts() -> nn.Module:
    torch.manual_seed(3)
    return Experts().double()


def loss(model: nn.Module, rank: int) -> Tensor:
    x, y = BATCHES[rank]
    return cross_entropy(model(x), y)


def both(model: nn.Module) -> Tensor:
    """What one process minimises that has the batches of two."""
    return (loss(model, 0) + loss(model, 1)) / 2


def wrapped(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model, find_unused_parameters=isinstance(model, Experts))


def trained(rank, mover, start, make, wrap, fast=False, block=1 << 20):
    """The supports and thetas after some moves, on this rank's batch; of a model by itself for rank None."""
    growth.BLOCK = block
    model = STARTS[start](make(), density=0.2)
    net = wrap(structured(model) if fast else model) if rank is not None else model
    objective = both if rank is None else functools.partial(loss, rank=rank)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    moved = model if mover == "SET" else net  # whose draws depend on the names, which a wrapper changes
    moving = MOVERS[mover](moved, optimizer, t_end=100, delta_t=3, decay=constant)
    for _ in range(10):
        optimizer.zero_grad()
        objective(net).backward()
        if rank is not None and net is model:  # as one does without DistributedDataParallel
            for p in model.parameters():
                dist.all_reduce(p.grad)
                p.grad /= 2
        optimizer.step()
        moving.step(objective)
    return {name: (sparse.index.clone(), theta.detach().clone()) for name, (theta, sparse, _) in parts(model).items()}


def unwrapped(model: nn.Module) -> nn.Module:
    return model


def agree(run, *arguments) -> None:
    one, (first, second) = trained(None, *arguments), run(trained, *arguments)
    assert one.keys() == first.keys()
    for name, (index, theta) in one.items():
        assert torch.equal(first[name][0], second[name][0])
        assert torch.equal(first[name][1], second[name][1])
        assert torch.equal(first[name][0], index), name
        torch.testing.assert_close(first[name][1], theta, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("wrap", [wrapped, unwrapped])
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("mover", MOVERS)
def test_processes_with_a_batch_each_move_as_one_does_with_both(run, mover, start, wrap):
    agree(run, mover, start, mlp, wrap)


@pytest.mark.parametrize("block", [7, 1 << 20])
def test_layers_that_never_build_their_weight_are_averaged_too(run, block):
    agree(run, "RigL", "dctps", mlp, wrapped, True, block)


def test_a_layer_that_only_one_of_them_uses_is_averaged_with_zero(run):
    agree(run, "RigL", "zero", experts, wrapped)


def refused(rank, group, fault):
    """The error of a move, and whether anything moved."""
    torch.manual_seed(rank if fault == "weights" else 0)
    model = nn.Sequential(nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 3)).double()
    model = recipes.rigl(model, density=0.2)
    moving = RigL(model, torch.optim.SGD(model.parameters(), lr=0.1), t_end=10, delta_t=1, group=group)
    before = {name: sparse.index.clone() for name, (_, sparse, _) in parts(model).items()}
    scale = float("nan") if fault == "nan" and rank else 1.0
    try:
        moving.step(lambda net: loss(net, rank) * scale)
        error = None
    except (RuntimeError, FloatingPointError) as raised:
        error = f"{type(raised).__name__}: {raised}"
    return error, any(not torch.equal(s.index, before[name]) for name, (_, s, _) in parts(model).items())


def test_moves_that_differ_are_refused_by_all_and_nothing_moves(run):
    for error, moved in run(refused, "auto", "weights"):
        assert error.startswith("RuntimeError: the moves of step 1 must be the same in all processes, got others")
        assert not moved
    for error, moved in run(refused, "auto", "nan"):  # of one process's batch
        assert error.startswith("FloatingPointError: gradients must be finite, got")
        assert not moved


def test_a_process_by_itself_moves_by_itself(run):
    assert run(refused, None, "weights") == [(None, True)] * 2


def gradually(model: nn.Module, group) -> None:
    recipes.ordinary(model)
    GradualPruning(model, torch.optim.SGD(model.parameters(), lr=0.1), 0.1, t_end=1, group=group).step()


PRUNING = {
    "step 1 prunes": gradually,
    "round 1 keeps": lambda model, group: LotteryTicket(model, lambda ticket: None, group=group).prune(),
}


def pruned(rank, what, group):
    """The error of pruning other weights in each process."""
    try:
        PRUNING[what](fresh(rank), group)
    except RuntimeError as error:
        return str(error)
    return None


@pytest.mark.parametrize("what", PRUNING)
def test_other_weights_are_pruned_by_each_alone_or_refused(run, what):
    for error in run(pruned, what, "auto"):
        assert error.startswith(f"what {what} must be the same in all processes, got others")
    assert run(pruned, what, None) == [None, None]


SALIENCIES = {
    "snip": methods.snip,
    "grasp": methods.grasp,
    "gradient": methods.gradient,
    "synflow": methods.synflow,
    "magnitude": methods.magnitude,
}


def fresh(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 20), nn.Tanh(), nn.Linear(20, 3)).double()


def scored(rank, name, wrap):
    objective = both if rank is None else functools.partial(loss, rank=rank)
    model = fresh()
    scores = SALIENCIES[name](model if rank is None else wrap(model), objective)
    return {name.removeprefix("module."): score for name, score in scores.items()}


@pytest.mark.parametrize("wrap", [wrapped, unwrapped])
@pytest.mark.parametrize("name", SALIENCIES)
def test_processes_with_a_batch_each_score_as_one_does_with_both(run, name, wrap):
    one, (first, second) = scored(None, name, unwrapped), run(scored, name, wrap)
    for tensor, score in one.items():
        assert torch.equal(first[tensor], second[tensor])
        torch.testing.assert_close(first[tensor], score, rtol=1e-9, atol=1e-12)


RECIPES = {
    "snip": lambda model, objective: recipes.snip(model, objective, density=0.1),
    "force": lambda model, objective: recipes.force(model, objective, density=0.1, steps=4),
    "iterative snip": lambda model, objective: recipes.iterative_snip(model, objective, density=0.1, steps=4),
    "dctps": lambda model, objective: recipes.dctps(model, density=0.1, objective=objective),
}


def chosen(rank, name):
    model = RECIPES[name](fresh(), both if rank is None else functools.partial(loss, rank=rank))
    return [U.support() for _, space in subspaces(model) for U in space.embedding.parts() if U.support() is not None]


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_choose_the_same_support_in_all_processes(run, name):
    for places in run(chosen, name):
        assert all(torch.equal(a, b) for a, b in zip(places, chosen(None, name), strict=True))


def scored_apart(rank, name, group):
    try:
        SALIENCIES[name](fresh(rank), functools.partial(loss, rank=rank), group=group)
    except RuntimeError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", SALIENCIES)
def test_other_weights_are_scored_by_each_alone_or_refused(run, name):
    for error in run(scored_apart, name, "auto"):
        assert error.startswith("the weights that are scored must be the same in all processes, got others")
    assert run(scored_apart, name, None) == [None, None]
