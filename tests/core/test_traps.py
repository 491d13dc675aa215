"""Traps of torch's parametrize mechanism: each has a rule, and a test of the rule."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from subspace import Key, materialize, register, share, subspaces
from subspace.embeddings import Direction, DirectSum, Gaussian, Identity, Sparse
from subspace.offsets import DCT, Pretrained, Zero
from tests.support.strategies import numbers

close = torch.testing.assert_close


def layer(dtype=torch.float64) -> nn.Linear:
    module = nn.Linear(8, 6).to(dtype)
    module.weight.data = numbers(0, 6, 8).to(dtype)
    return module


def ours(module: nn.Module | None = None, dim: int = 10, key: int = 0):
    module = layer() if module is None else module
    return module, register(module, "weight", DCT(module.weight), Sparse(module.weight, dim, key=Key(key)))


def test_register_clears_the_gradient_of_the_old_shape():
    module = layer()
    module(numbers(1, 2, 8)).sum().backward()
    _, space = ours(module)
    assert space.theta.grad is None
    module(numbers(1, 2, 8)).sum().backward()
    assert space.theta.grad.shape == (10,)


def test_theta_is_the_weights_own_parameter_so_an_optimizer_made_before_still_trains_it():
    module = layer()
    weight = module.weight
    optimizer = torch.optim.Adam(module.parameters())
    _, space = ours(module)
    assert space.theta is weight
    before = space.theta.detach().clone()
    module(numbers(1, 2, 8)).sum().backward()
    optimizer.step()
    assert (space.theta != before).all()


def test_optimizer_state_of_the_old_shape_fails_loudly():
    module = layer()
    optimizer = torch.optim.Adam(module.parameters())
    module(numbers(1, 2, 8)).sum().backward()
    optimizer.step()
    ours(module)
    module(numbers(1, 2, 8)).sum().backward()
    with pytest.raises(RuntimeError, match="size"):
        optimizer.step()


def test_registering_asks_for_training_even_of_a_frozen_weight():
    module = layer().requires_grad_(False)
    _, space = ours(module)
    assert space.theta.requires_grad
    assert not module.bias.requires_grad


def test_a_deepcopy_has_a_class_of_its_own():
    module, _ = ours()
    expected = module.weight.detach().clone()
    twin = copy.deepcopy(module)
    parametrize.remove_parametrizations(twin, "weight")
    assert torch.equal(module.weight, expected)
    third = copy.deepcopy(copy.deepcopy(module))
    assert torch.equal(third.weight, expected)
    assert type(third).__name__ == "ParametrizedLinear"
    assert isinstance(third, nn.Linear)


def test_a_deepcopy_is_not_served_the_originals_weight_under_cached():
    module, _ = ours()
    twin = copy.deepcopy(module)
    twin.parametrizations.weight.original.data.zero_()
    with parametrize.cached():
        first, second = module.weight, twin.weight
        assert module.weight is first
    assert not torch.equal(first, second)


def test_a_deepcopy_of_a_recurrent_net_after_a_forward_pass():
    lstm = nn.LSTM(5, 6)
    register(lstm, "weight_hh_l0", DCT(lstm.weight_hh_l0), Sparse(lstm.weight_hh_l0, 10, key=Key(0)))
    x = torch.ones(3, 2, 5)
    expected = lstm(x)[0]
    for copied in (copy.deepcopy(lstm), materialize(lstm)):
        close(copied(x)[0], expected)
        copied(x)[0].sum().backward()


def test_a_deepcopy_keeps_ties():
    model = nn.Sequential(layer(), layer())
    for i, module in enumerate(model):
        ours(module, key=i)
    share(model, nn.Parameter(numbers(0, 10)))
    twin = copy.deepcopy(model)
    one, two = (space.theta for _, space in subspaces(twin))
    assert one is two
    assert one is not model[0].parametrizations.weight.original


def test_foreign_parametrizations_live_beside_ours():
    module = layer()
    parametrize.register_parametrization(module, "bias", nn.Softplus(), unsafe=True)
    ours(module)
    expected = module(numbers(1, 2, 8))
    dense = materialize(module)
    close(dense(numbers(1, 2, 8)), expected)
    assert list(dense.parametrizations) == ["bias"]
    assert [name for name, _ in subspaces(module)] == ["weight"]
    assert materialize(dense) is not dense


def test_functional_call_on_the_weight_uses_its_projection():
    module, _ = ours()
    W, x = numbers(3, 6, 8), numbers(4, 2, 8)
    nearest = torch.nn.Linear(8, 6, dtype=torch.float64)
    projection = module.parametrizations.weight[0]
    nearest.weight.data = projection(projection.right_inverse(W)).detach()
    nearest.bias.data = module.bias.data
    close(torch.func.functional_call(module, {"weight": W}, (x,)), nearest(x))


def test_cached_computes_the_weight_once():
    module, space = ours()
    calls = []
    space.parametrization.embedding.register_forward_hook(lambda *_: calls.append(1))
    assert module.weight is not module.weight
    assert len(calls) == 2
    with parametrize.cached():
        assert module.weight is module.weight
    assert len(calls) == 3


def test_next_to_nothing_for_ddp_to_broadcast():
    module = layer()
    w = module.weight
    register(module, "weight", Pretrained(w), Gaussian(w, 10, key=Key(0)))
    for each in (module, ours()[0]):
        assert sum(buffer.nbytes for buffer in each.buffers()) == 128


def test_distributed_data_parallel_reduces_theta(tmp_path):
    module, space = ours()
    alone = copy.deepcopy(module)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        reduced = []
        model = nn.parallel.DistributedDataParallel(module)

        def count(_, bucket):
            reduced.append(bucket.buffer().numel())
            future = torch.futures.Future()
            future.set_result(bucket.buffer())
            return future

        model.register_comm_hook(None, count)
        model(numbers(1, 2, 8)).sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    alone(numbers(1, 2, 8)).sum().backward()
    close(space.theta.grad, alone.parametrizations.weight.original.grad)
    assert sum(reduced) == 10 + 6


def test_fully_sharded_data_parallel_trains_theta_and_leaves_a_shared_one_outside(tmp_path):
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    if "ignored_params" not in inspect.signature(getattr(fsdp, "fully_shard", id)).parameters:
        pytest.skip("this torch's fully_shard has no ignored_params")
    alone, apart, shared = (nn.Sequential(layer(), layer()) for _ in range(3))
    theta = nn.Parameter(numbers(0, 10))
    for model in (alone, apart, shared):
        for i, module in enumerate(model):
            ours(module, key=i)
    x = numbers(1, 2, 8)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        fsdp.fully_shard(apart[0], mesh=mesh)
        apart[0](x).sum().backward()
        share(shared, theta)
        for module in shared:
            fsdp.fully_shard(module, mesh=mesh, ignored_params={theta})
        sum(module(x).sum() for module in shared).backward()
        torch.distributed.all_reduce(theta.grad)  # dim numbers, whatever the model's size
        sharded = apart[0].parametrizations.weight.original.grad.full_tensor()
    finally:
        torch.distributed.destroy_process_group()
    sum(module(x).sum() for module in alone).backward()
    thetas = [space.theta.grad for _, space in subspaces(alone)]
    close(sharded, thetas[0])
    close(theta.grad, thetas[0] + thetas[1])


def snapshot(model: nn.Module):
    return {name: (id(t), t.clone()) for name, t in (*model.named_parameters(), *model.named_buffers())}, repr(model)


def same(one, other) -> bool:
    return (
        one[1] == other[1]
        and one[0].keys() == other[0].keys()
        and all(
            a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in zip(one[0].values(), other[0].values(), strict=True)
        )
    )


def tied() -> nn.Module:
    model = nn.Sequential(layer(), layer())
    model[1].weight = model[0].weight
    return model


def twice_named() -> nn.Module:
    module = layer()
    module.alias = module.weight
    return module


BAD_REGISTRATIONS = {
    r"name must be one of \['bias', 'weight'\], got 'wait'": (layer, lambda m: ("wait", m.weight)),
    "weight must not be tied without model=, the model of both, got one that is also alias of Linear": (
        twice_named,
        lambda m: ("weight", m.weight),
    ),
    r"offset and embedding must have weight's shape \(6, 8\), got \(8, 6\)": (layer, lambda m: ("weight", m.weight.T)),
    r"DCT must be of weight's torch.float64 on cpu, got torch.float32 on cpu": (
        layer,
        lambda m: ("weight", m.weight.float()),
    ),
}


@pytest.mark.parametrize("error", BAD_REGISTRATIONS)
def test_a_registration_that_cannot_be_is_refused_and_the_module_is_as_it_was(error):
    make, arguments = BAD_REGISTRATIONS[error]
    module = make()
    before = snapshot(module)
    name, like = arguments(module)
    with pytest.raises(ValueError, match=error):
        register(module, name, DCT(like), Sparse(like, 4, key=Key(0)))
    assert same(before, snapshot(module))


def test_bad_registrations_of_other_kinds():
    module = layer()
    before = snapshot(module)
    with pytest.raises(ValueError, match=r"offset and embedding must have one shape, got \(6, 8\) and \(3, 3\)"):
        register(module, "weight", Zero(module.weight), Identity(torch.empty(3, 3)))
    with pytest.raises(ValueError, match=r"theta must have shape \(4,\), got \(5,\)"):
        register(module, "weight", Zero(module.weight), Sparse(module.weight, 4, key=Key(0)), torch.zeros(5))
    assert same(before, snapshot(module))
    table = nn.Module()
    table.weight = nn.Parameter(torch.zeros(6, 8, dtype=torch.complex64), requires_grad=False)
    with pytest.raises(TypeError, match="weight must be a real floating-point tensor, got torch.complex64"):
        register(table, "weight", DCT(torch.empty(6, 8)), Identity(torch.empty(6, 8)))
    lazy = nn.LazyLinear(3)
    with pytest.raises(ValueError, match="weight must have a shape, got one that is not initialized"):
        register(lazy, "weight", DCT(torch.empty(3, 3)), Identity(torch.empty(3, 3)))
    ours(module)
    before = snapshot(module)
    with pytest.raises(ValueError, match="weight must not be parametrized yet, got one that is"):
        register(module, "weight", DCT(module.weight), Identity(module.weight))
    assert same(before, snapshot(module))


def test_sharing_what_does_not_fit_is_refused_and_the_model_is_as_it_was():
    model = nn.Sequential(layer(), layer())
    with pytest.raises(ValueError, match="model must have at least one registered subspace, got none"):
        share(model, nn.Parameter(torch.zeros(10)))
    ours(model[0], 10), ours(model[1], 11)
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"theta must be \(11,\) torch.float64 on cpu for weight, got \(10,\)"):
        share(model, nn.Parameter(numbers(0, 10)))
    assert same(before, snapshot(model))


def test_tied_weights_are_refused_where_their_model_is_not_known_and_the_model_is_as_it_was():
    model = tied()
    before = snapshot(model)
    with pytest.raises(ValueError, match="weight must not be tied without model=, .* got one that is also weight of"):
        register(model[0], "weight", DCT(model[0].weight), Sparse(model[0].weight, 4, key=Key(0)))
    assert same(before, snapshot(model))


def test_register_on_meta_never_touches_dense_memory():
    with torch.device("meta"):
        module = nn.Linear(1 << 16, 1 << 16, bias=False)
    w = module.weight
    U = DirectSum([Direction(DCT(w)), Sparse(w, 1000, key=Key(0))])
    space = register(module, "weight", Zero(w), U, torch.zeros(1001, device="meta"))
    assert space.theta.is_meta
    assert space.theta.shape == (1001,)
