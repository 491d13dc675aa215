"""Two processes that `fully_shard` gives a part of every theta move it as one process does that has all of it."""

from __future__ import annotations

import io
from itertools import product

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from subspace import (
    Key,
    add_alpha_group,
    load,
    materialize,
    methods,
    recipes,
    register,
    save,
    shard_offsets,
    structured,
    subspaces,
    tune,
)
from subspace._base.sharded import fill, is_sharded, reshard, whole
from subspace.checkpoint.sealed import read
from subspace.embeddings import Sparse
from subspace.methods import GradualPruning, constant, growth
from subspace.offsets import Pretrained, Zero
from tests.methods.test_moving import MOVERS, STARTS, mlp, parts
from tests.methods.test_processes import X, both, loss
from tests.support.cases import each_with_one

pytestmark = [pytest.mark.torchrun, pytest.mark.filterwarnings("ignore:the budget of")]
close = torch.testing.assert_close
OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.03, amsgrad=True),
}


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
    with torch.no_grad():
        model(X)
    moving = MOVERS[mover](model, optimizer, t_end=100, delta_t=3, decay=constant, follow=average)
    train(model, optimizer, moving, both if rank is None else lambda net: loss(net, rank), average)
    return kept_of(model, optimizer, average)


def agree(run, function, *arguments) -> None:
    one, others = function(None, *arguments), run(function, *arguments)
    for other in others:
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-7, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(
    "moving, training",
    each_with_one(product(MOVERS, STARTS), product(OPTIMIZERS, [by_layers, at_once])),
    ids=lambda pair: "-".join(getattr(each, "__name__", each) for each in pair),
)
def test_a_sharded_model_moves_as_a_whole_one_does_on_both_batches(run, moving, training):
    agree(run, moved, *moving, *training, False, 1 << 20)


@pytest.mark.parametrize("block", [7, 1 << 20])
@pytest.mark.parametrize("shard", [by_layers, at_once])
def test_layers_that_never_build_their_weight_move_in_parts_too(run, shard, block):
    agree(run, moved, "RigL", "dctps", "momentum", shard, True, block)


def with_alphas(rank, optimizer, shard) -> dict[str, Tensor]:
    model = recipes.dctps(mlp(), density=0.21)
    model = model if rank is None else shard(model)
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    add_alpha_group(optimizer, model, lr=0.3, weight_decay=0.2)
    with torch.no_grad():
        model(X)
    for _ in range(5):
        optimizer.zero_grad()
        (both(model) if rank is None else loss(model, rank)).backward()
        optimizer.step()
        with torch.no_grad():
            model(X)
    reshard(model)
    return {name: whole(space.theta.detach()) for name, space in subspaces(model)}


@pytest.mark.parametrize("shard", [by_layers, at_once])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_alphas_of_a_sharded_model_train_as_those_of_a_whole_one(run, optimizer, shard):
    agree(run, with_alphas, optimizer, shard)


def pruned(rank, optimizer, shard) -> dict[str, Tensor]:
    model = recipes.ordinary(mlp())
    model = model if rank is None else shard(model)
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    pruning = GradualPruning(model, optimizer, 0.1, t_end=6, delta_t=2)
    for _ in range(7):
        optimizer.zero_grad()
        (both(model) if rank is None else loss(model, rank)).backward()
        optimizer.step()
        with torch.no_grad():
            model(X)
        pruning.step()
    if rank is not None:
        with pytest.raises(ValueError, match="model must be whole to be cut, got one sharded by fully_shard"):
            pruning.cut()
    reshard(model)
    thetas = {f"{name} theta": whole(space.theta.detach()) for name, space in subspaces(model)}
    return thetas | pruning.kept


@pytest.mark.parametrize("shard", [by_layers, at_once])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_sharded_model_is_pruned_as_a_whole_one_is(run, optimizer, shard):
    agree(run, pruned, optimizer, shard)


def zeroed(rank: int, numbers: list[float], zero: list[bool], replicated: bool) -> Tensor:
    mesh = init_device_mesh("cpu", (2,))
    tensor = distribute_tensor(torch.tensor(numbers), mesh, [Replicate() if replicated else Shard(0)])
    fill(tensor, torch.tensor(zero))
    return tensor.full_tensor()


@given(st.lists(st.tuples(st.floats(width=32), st.booleans()), min_size=1, max_size=7), st.booleans())
@settings(max_examples=25, deadline=None)
def test_every_process_sets_its_own_part_to_zero(run, entries, replicated):
    numbers, zero = map(list, zip(*entries, strict=True))
    wanted = torch.tensor(numbers).masked_fill(torch.tensor(zero), 0)
    for found in run(zeroed, numbers, zero, replicated):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)


def contents(path: str) -> tuple[dict, dict[str, Tensor]]:
    """Of a file: its description, but for fingerprints, whose last digits the place in memory decides; its tensors."""
    about, held = read(path)
    for entry in about["spaces"].values():
        del entry["fingerprint"]
    return about, held


def reloaded(rank: int, mover: str, shard, folder: str) -> None:
    """Move a whole model and a sharded one alike: one file comes of both, and any state finds its way to any model."""

    def fresh() -> nn.Module:
        return STARTS["dctps"](mlp(), density=0.21)

    def train(model: nn.Module) -> nn.Module:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        moving = MOVERS[mover](model, optimizer, t_end=10, delta_t=1, decay=constant)
        for _ in range(2):
            optimizer.zero_grad()
            both(model).backward()
            optimizer.step()
            moving.step(both)
        return model

    one, many = train(fresh()), train(shard(fresh()))
    for (_, a), (_, b) in zip(subspaces(one), subspaces(many), strict=True):
        set_part(b.theta, a.theta)  # to the last bit
    save(many, f"{folder}/many")
    save(one, f"{folder}/one{rank}")
    (about, held), (same, values) = contents(f"{folder}/many"), contents(f"{folder}/one{rank}")
    assert about == same
    assert held.keys() == values.keys()
    assert all(torch.equal(held[name], values[name]) for name in held)
    y = one(X)
    close(load(mlp(), f"{folder}/many")(X), y)
    whole_state = get_model_state_dict(many, options=StateDictOptions(full_state_dict=True))
    plain = fresh()
    plain.load_state_dict(whole_state)
    close(plain(X), y)
    again = shard(fresh())
    set_model_state_dict(again, plain.state_dict(), options=StateDictOptions(full_state_dict=True))
    close(again(X), y)
    dcp.save(get_model_state_dict(many), checkpoint_id=f"{folder}/dcp")
    other = shard(fresh())  # with other places, for which its state has room once there is a mover
    MOVERS[mover](other, torch.optim.SGD(other.parameters(), lr=0.1), t_end=10)
    state = get_model_state_dict(other)
    dcp.load(state, checkpoint_id=f"{folder}/dcp")
    set_model_state_dict(other, state)
    close(other(X), y)
    places = ([sparse.index for _, sparse, _ in parts(model).values()] for model in (one, other))
    assert all(map(torch.equal, *places))


@torch.no_grad()
def set_part(sharded: Tensor, values: Tensor) -> None:
    sharded.copy_(distribute_tensor(values.detach(), sharded.device_mesh, sharded.placements))


@pytest.mark.parametrize("shard", [by_layers, at_once])
@pytest.mark.parametrize("mover", MOVERS)
def test_a_moved_sharded_model_is_saved_and_loaded_in_parts_and_whole(run, mover, shard, tmp_path):
    run(reloaded, mover, shard, str(tmp_path))


def biased() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 3)).double()


def by_biases(model: nn.Module) -> nn.Module:
    """Shard layer by layer, but for a theta of several."""
    thetas = [space.theta for _, space in subspaces(model)]
    return leave_out(model) if thetas[0] is thetas[1] else by_layers(model)


def leave_out(model: nn.Module) -> nn.Module:
    """Shard every layer but for the one theta of all."""
    theta, mesh = next(subspaces(model))[1].theta, init_device_mesh("cpu", (2,))
    for layer in (model[1], model[3], model):
        fully_shard(layer, mesh=mesh, ignored_params={theta})
    return model


def with_one_theta(rank, shard) -> dict[str, Tensor]:
    model = recipes.random_subspace(biased(), dim=7, also_train=["bias"])
    theta = next(subspaces(model))[1].theta
    model = model if rank is None else shard(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(4):
        optimizer.zero_grad()
        (both(model) if rank is None else loss(model, rank)).backward()
        if shard is leave_out and rank is not None:
            dist.all_reduce(theta.grad)
            theta.grad /= dist.get_world_size()
        optimizer.step()
    return {name: whole(p.detach()) for name, p in model.named_parameters()} | {"y": model(X).detach()}


@pytest.mark.parametrize("shard", [leave_out, at_once])
def test_one_theta_of_a_sharded_model_trains_as_that_of_a_whole_one(run, shard):
    agree(run, with_one_theta, shard)


def written(rank: int, shard) -> int:
    model = shard(recipes.random_subspace(mlp(), dim=7))
    file = io.BytesIO()
    save(model, file)
    return len(file.getvalue())


@pytest.mark.parametrize("shard", [leave_out, at_once])
def test_the_first_process_alone_writes(run, shard):
    first, second = run(written, shard)
    assert first > 0 == second


TUNED = {
    "pretrained": lambda m: recipes.sparse_finetuning(m, density=0.3, also_train=["bias"]),
    "structured": lambda m: structured(recipes.sparse_finetuning(m, density=0.3, also_train=["bias"])),
    "of low rank": lambda m: structured(tune.lora_xs(m, rank=2)),
    "drawn and kept": lambda m: recipes.random_subspace(m, dim=7, also_train=["bias"]),
    "one theta": lambda m: recipes.random_subspace(m, dim=7, also_train=["bias"], offset=lambda w, key: Pretrained(w)),
}


def dense_parts(model: nn.Module) -> list[Tensor]:
    return [getattr(space.offset, space.offset.dense) for _, space in subspaces(model)]


def tuned(rank, how, shard) -> dict[str, Tensor]:
    model = TUNED[how](biased())
    if rank is not None:
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        shard(model)
        assert shard_offsets(model) is model
        for d in dense_parts(model):
            local = d.to_local()
            assert local.untyped_storage().nbytes() == 8 * local.numel()
            assert local.numel() <= -(-len(d) // 2) * d.shape[1:].numel()
        whole_state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
        assert state.keys() == whole_state.keys()
        assert all(torch.equal(whole_state[name], tensor) for name, tensor in state.items())
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.03)
    for _ in range(4):
        optimizer.zero_grad()
        (both(model) if rank is None else loss(model, rank)).backward()
        average_left_out(model)
        optimizer.step()
    return {name: whole(p.detach()) for name, p in model.named_parameters()} | {"y": model(X).detach()}


def average_left_out(model: nn.Module) -> None:
    """The gradient of a theta that is not sharded, over the processes."""
    reshard(model)
    theta = next(subspaces(model))[1].theta
    if dist.is_initialized() and not is_sharded(theta):
        dist.all_reduce(theta.grad)
        theta.grad /= dist.get_world_size()


@pytest.mark.parametrize("shard", [by_biases, at_once])
@pytest.mark.parametrize("how", TUNED)
def test_a_model_whose_d_is_in_parts_trains_as_a_whole_one(run, how, shard):
    agree(run, tuned, how, shard)


def tuned_and_kept(rank: int, how: str, folder: str) -> None:
    """A file and a checkpoint in parts bring all of it back, in parts and whole."""
    model = shard_offsets(at_once(TUNED[how](biased())))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    loss(model, rank).backward()
    optimizer.step()
    y = model(X)
    save(model, f"{folder}/file")
    close(load(biased(), f"{folder}/file")(X), y)
    dcp.save(get_model_state_dict(model), checkpoint_id=f"{folder}/dcp")
    again = shard_offsets(at_once(TUNED[how](biased())))
    state = get_model_state_dict(again)
    dcp.load(state, checkpoint_id=f"{folder}/dcp")
    set_model_state_dict(again, state)
    close(again(X), y)
    with pytest.raises(ValueError, match="model must be whole to become dense, got one sharded by fully_shard"):
        materialize(again)


@pytest.mark.parametrize("how", TUNED)
def test_a_model_whose_d_is_in_parts_is_saved_and_loaded(run, how, tmp_path):
    run(tuned_and_kept, how, str(tmp_path))


def moved_in_parts(rank, mover) -> dict[str, Tensor]:
    model = recipes.sparse_finetuning(mlp(), density=0.21)
    model = model if rank is None else shard_offsets(by_layers(model))
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    moving = MOVERS[mover](model, optimizer, t_end=100, delta_t=3, decay=constant)
    train(model, optimizer, moving, both if rank is None else lambda net: loss(net, rank), {})
    reshard(model)
    return {name: whole(theta.detach()) for name, (theta, _, _) in parts(model).items()}


@pytest.mark.parametrize("mover", MOVERS)
def test_places_move_on_a_d_in_parts(run, mover):
    agree(run, moved_in_parts, mover)


def keeps_a_weight(rank: int, how: str) -> bool:
    """Whether a tensor of the size of w or d is kept for the backward pass."""
    model, x = shard_offsets(at_once(TUNED[how](biased()))), X.clone().requires_grad_()
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
        y = model(x)
    y.sum().backward()
    return 20 * 64 in kept


def test_structured_layers_keep_no_d_between_their_passes(run):
    assert run(keeps_a_weight, "structured") == [False, False]
    assert run(keeps_a_weight, "pretrained") == [True, True]


def not_sharded(rank: int) -> None:
    with pytest.raises(ValueError, match="model must have a Parameter that fully_shard has sharded, got none"):
        shard_offsets(TUNED["pretrained"](biased()))


def test_a_whole_model_is_refused(run):
    run(not_sharded)


STYLES = {
    "colwise": (ColwiseParallel, "a module with a tensor d . U theta must stay whole, got a DTensor for its"),
    "rowwise": (RowwiseParallel, "distribute_tensor` should be used to distribute leaf tensors"),  # torch's own words
}


def split(rank: int, style: str, bias: bool) -> None:
    torch.manual_seed(0)
    mesh = init_device_mesh("cpu", (2,))
    model = recipes.dctps(nn.Sequential(nn.Linear(8, 8, bias=bias), nn.ReLU(), nn.Linear(8, 4)), density=0.3)
    x = torch.ones(2, 8)
    shown, y = repr(model), model(x)
    kind, words = STYLES[style]
    with pytest.raises((ValueError, RuntimeError), match=words):
        parallelize_module(model, mesh, {"0": kind()})
    assert repr(model) == shown
    assert not any(map(is_sharded, model.parameters()))
    assert torch.equal(model(x), y)
    with torch.no_grad(), pytest.raises(ValueError, match=STYLES["colwise"][1]):
        parallelize_module(model, mesh, {"0": kind()})
    close(materialized(model, mesh, kind)(x), y)


def materialized(model: nn.Module, mesh, kind) -> nn.Module:
    dense = materialize(model)
    output = {"output_layouts": Replicate()} if kind is ColwiseParallel else {"input_layouts": Replicate()}
    return parallelize_module(dense, mesh, {"0": kind(**output)})


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("style", STYLES)
def test_tensor_parallelism_of_a_registered_layer_is_refused(run, style, bias):
    run(split, style, bias)


def beside(rank: int) -> None:
    torch.manual_seed(0)
    model = recipes.dctps(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)), density=0.3, include=["0"])
    x = torch.ones(2, 8)
    y, mesh = model(x), init_device_mesh("cpu", (2,))
    parallelize_module(model, mesh, {"2": ColwiseParallel(output_layouts=Replicate())})
    assert is_sharded(model[2].weight)
    close(model(x), y)
    model(x).sum().backward()
    assert model[0].parametrizations.weight.original.grad.norm() > 0


def test_layers_beside_a_registered_one_may_be_tensor_parallel(run):
    run(beside)


REGISTERING = {
    "dctps": lambda model: recipes.dctps(model, density=0.3),
    "random_subspace": lambda model: recipes.random_subspace(model, dim=5),
    "snip": lambda model: recipes.snip(model, lambda net: net(torch.ones(2, 8)).sum(), density=0.3),
    "magnitude": lambda model: recipes.magnitude(model, density=0.3),
    "register": lambda m: register(m[0], "weight", Zero(m[0].weight), Sparse(m[0].weight, 5, key=Key(0))),
    "saliency": lambda model: methods.magnitude(model),
}


def by_the_first(rank: int, folder: str) -> None:
    """What FullyShardedDataParallel flattens trains, and is saved where it is whole; what needs a theta is refused."""
    one, model = recipes.dctps(biased(), density=0.3), recipes.dctps(biased(), density=0.3)
    model = FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True)
    for each, objective in ((one, both), (model, lambda net: loss(net, rank))):
        optimizer = torch.optim.Adam(each.parameters(), lr=0.03)
        for _ in range(3):
            optimizer.zero_grad()
            objective(each).backward()
            optimizer.step()
    close(model(X), one(X))
    assert [name for name, _ in subspaces(model)] == [name for name, _ in subspaces(one)]
    for what in (
        lambda: save(model, f"{folder}/{rank}"),
        lambda: materialize(model),
        lambda: add_alpha_group(optimizer, model),
        lambda: shard_offsets(model),
        *(lambda mover=mover: mover(model, optimizer, t_end=10) for mover in MOVERS.values()),
    ):
        with pytest.raises(ValueError, match=r"theta of .* must have shape .*, got a part, .*: shard by fully_shard"):
            what()
    with FullyShardedDataParallel.summon_full_params(model):
        save(model, f"{folder}/{rank}")
    close(load(biased(), f"{folder}/{rank}")(X), one(X))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_first_fsdp_trains_and_is_refused_where_a_theta_is_needed(run, tmp_path):
    run(by_the_first, str(tmp_path))


def too_late(rank: int, tensor_parallel: bool) -> None:
    for what in REGISTERING:
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
        if tensor_parallel:
            parallelize_module(model, init_device_mesh("cpu", (2,)), {"0": ColwiseParallel(), "2": RowwiseParallel()})
        else:
            at_once(model)
        with pytest.raises(ValueError, match="weight must be whole to be .*, got a DTensor: register before"):
            REGISTERING[what](model)
        assert not list(subspaces(model)), what


@pytest.mark.parametrize("tensor_parallel", [True, False])
def test_what_is_sharded_already_is_not_registered(run, tensor_parallel):
    run(too_late, tensor_parallel)
