"""Two processes that `fully_shard` gives a part of every theta move it as one process does that has all of it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from subspace import recipes, structured, subspaces
from subspace._base.sharded import set_zero, whole
from subspace.methods import GradualPruning, constant, growth
from tests.methods.test_moving import MOVERS, STARTS, mlp, parts
from tests.methods.test_processes import both, loss
from tests.support.processes import processes

pytestmark = [pytest.mark.torchrun, pytest.mark.filterwarnings("ignore:the budget of")]
OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.03, amsgrad=True),
}


@pytest.fixture(scope="module")
def run():
    with processes() as run:
        yield run


def by_layers(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (2,))
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def at_once(model: nn.Module) -> nn.Module:
    return fully_shard(model, mesh=init_device_mesh("cpu", (2,)))


def kept_of(model: nn.Module, optimizer: torch.optim.Optimizer, average: dict[str, Tensor]) -> dict[str, Tensor]:
    """All that is there of every theta, by name, whole."""
    kept = {}
    for name, (theta, sparse, _) in parts(model).items():
        state = {n: t for n, t in optimizer.state[theta].items() if isinstance(t, Tensor)}
        kept |= {f"{name} {n}": whole(t.detach()) for n, t in {"theta": theta, "grad": theta.grad, **state}.items()}
        kept[f"{name} average"] = whole(average[name.removesuffix("weight") + "parametrizations.weight.original"])
        kept[f"{name} index"] = sparse.index.clone()
    return kept


def train(model: nn.Module, optimizer: torch.optim.Optimizer, mover, objective, average: dict[str, Tensor]) -> None:
    """Some steps, with a pass without gradients before every move: the model is not in parts after that."""
    for _ in range(7):
        optimizer.zero_grad()
        objective(model).backward()
        optimizer.step()
        with torch.no_grad():
            objective(model)
        mover.step(objective)
        state = model.state_dict(keep_vars=True)
        for name, tensor in average.items():
            tensor.mul_(0.9).add_(state[name].detach(), alpha=0.1)


def moved(rank, mover, start, optimizer, shard, fast, block) -> dict[str, Tensor]:
    growth.BLOCK = block
    model = STARTS[start](mlp(), density=0.21)
    model = structured(model) if fast else model
    model = model if rank is None else shard(model)
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    moving = MOVERS[mover](model, optimizer, t_end=100, delta_t=3, decay=constant, follow=average)
    train(model, optimizer, moving, both if rank is None else lambda net: loss(net, rank), average)
    return kept_of(model, optimizer, average)


def agree(run, function, *arguments) -> None:
    one, others = function(None, *arguments), run(function, *arguments)
    for other in others:
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-7, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("shard", [by_layers, at_once])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("mover", MOVERS)
def test_a_sharded_model_moves_as_a_whole_one_does_on_both_batches(run, mover, start, optimizer, shard):
    agree(run, moved, mover, start, optimizer, shard, False, 1 << 20)


@pytest.mark.parametrize("block", [7, 1 << 20])
@pytest.mark.parametrize("shard", [by_layers, at_once])
def test_layers_that_never_build_their_weight_move_in_parts_too(run, shard, block):
    agree(run, moved, "RigL", "dctps", "momentum", shard, True, block)


def pruned(rank, optimizer, shard) -> dict[str, Tensor]:
    model = recipes.ordinary(mlp())
    model = model if rank is None else shard(model)
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    pruning = GradualPruning(model, optimizer, 0.1, t_end=6, delta_t=2)
    for _ in range(7):
        optimizer.zero_grad()
        (both(model) if rank is None else loss(model, rank)).backward()
        optimizer.step()
        pruning.step()
    if rank is not None:
        with pytest.raises(ValueError, match="model must be whole to be cut, got one sharded by fully_shard"):
            pruning.cut()
    return {name: whole(space.theta.detach()) for name, space in subspaces(model)} | pruning.kept


@pytest.mark.parametrize("shard", [by_layers, at_once])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_sharded_model_is_pruned_as_a_whole_one_is(run, optimizer, shard):
    agree(run, pruned, optimizer, shard)


def zeroed(rank: int, numbers: list[float], zero: list[bool], replicated: bool) -> Tensor:
    mesh = init_device_mesh("cpu", (2,))
    tensor = distribute_tensor(torch.tensor(numbers), mesh, [Replicate() if replicated else Shard(0)])
    set_zero(tensor, torch.tensor(zero))
    return tensor.full_tensor()


@given(st.lists(st.tuples(st.floats(width=32), st.booleans()), min_size=1, max_size=7), st.booleans())
@settings(max_examples=25, deadline=None)
def test_every_process_sets_its_own_part_to_zero(run, entries, replicated):
    numbers, zero = map(list, zip(*entries, strict=True))
    wanted = torch.tensor(numbers).masked_fill(torch.tensor(zero), 0)
    for found in run(zeroed, numbers, zero, replicated):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)
