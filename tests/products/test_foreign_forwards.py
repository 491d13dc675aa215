"""structured beside other people's forwards and hooks, and through wrappers of whole models."""

from __future__ import annotations

import copy
import functools
import types

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import subspace
from subspace import (
    is_structured,
    materialize,
    recipes,
    routes,
    structured,
    subspaces,
    summary,
    unregister,
    unstructured,
)
from subspace.methods import RigL
from tests.support.cases import rest_slow

close = torch.testing.assert_close
X = torch.linspace(-1, 1, 48).reshape(3, 16).sin()


def model() -> nn.Sequential:
    torch.manual_seed(0)
    net = recipes.dctps(nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)), density=0.2)
    with torch.no_grad():
        for _, space in subspaces(net):
            space.theta.normal_()
    return net


def closure(layer: nn.Module) -> None:
    old = layer.forward
    layer.forward = lambda x: 2 * old(x)


def method(layer: nn.Module) -> None:
    old = layer.forward
    layer.forward = types.MethodType(lambda self, input: 2 * old(input), layer)


def as_accelerate(layer: nn.Module) -> None:
    """What accelerate's add_hook_to_module does."""
    layer._old_forward = layer.forward

    def new_forward(module, *args, **kwargs):
        return 2 * module._old_forward(*args, **kwargs)

    layer.forward = functools.update_wrapper(functools.partial(new_forward, layer), layer._old_forward)


FOREIGN = {"closure": closure, "method": method, "as accelerate": as_accelerate}
each_foreign = pytest.mark.parametrize("put", FOREIGN.values(), ids=FOREIGN)


@each_foreign
def test_a_forward_that_was_replaced_before_is_kept_and_said(put):
    net = model()
    put(net[0])
    expected = net(X)
    structured(net)
    close(net(X), expected)
    assert [row.plain_because for row in summary(net).rows] == ["its forward was replaced before", None]
    assert [is_structured(net[0]), is_structured(net[2])] == [False, True]
    close(unstructured(net)(X), expected)


@each_foreign
def test_a_forward_that_is_replaced_afterwards_wraps_the_products(put, monkeypatch):
    net = model()
    put(net[0])
    expected = net(X)
    net = structured(model())
    put(net[0])
    close(net(X), expected)
    assert [row.name for row in routes(net, X, measure=False).rows] == ["0.weight", "2.weight"]
    assert [row.plain_because for row in summary(net).rows] == [None, None]
    monkeypatch.setattr(subspace.SubspaceParametrization, "forward", lambda *_: pytest.fail("w was built"))
    close(net(X), expected)
    close(structured(net, "dense")(X), expected)
    monkeypatch.undo()
    unstructured(net)
    assert not is_structured(net[0])
    close(net(X), expected)


class Doubled(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, 2 * weight, bias)


def test_a_convolution_of_another_inner_forward_builds_its_weight():
    own = nn.Conv2d(4, 8, 3)
    own._conv_forward = types.MethodType(Doubled._conv_forward, Doubled(4, 8, 3))
    x = torch.linspace(-1, 1, 2 * 4 * 5 * 5).reshape(2, 4, 5, 5).sin()
    for layer in (Doubled(4, 8, 3), own):
        net = recipes.dctps(nn.Sequential(layer), density=0.1)
        expected = net(x)
        close(structured(net)(x), expected)
        assert [row.plain_because for row in summary(net).rows] == ["its _conv_forward was replaced"]


@each_foreign
def test_growth_sees_through_a_forward_that_wraps_the_products(put):
    places, y = [], torch.arange(3)
    for fast in (False, True):
        torch.manual_seed(0)
        net = recipes.rigl(nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)), density=0.2)
        with torch.no_grad():
            for _, space in subspaces(net):
                space.theta.copy_(torch.linspace(-1, 1, space.theta.numel()))
        if fast:
            structured(net)
        put(net[0])
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        RigL(net, optimizer, t_end=10, delta_t=1).step(lambda net: nn.functional.cross_entropy(net(X), y))
        places.append([space.embedding.support().clone() for _, space in subspaces(net)])
        assert is_structured(net[0]) == fast
    for one, other in zip(*places, strict=True):
        assert torch.equal(one, other)


def test_forwards_put_back_by_who_wrapped_them_are_as_after_unstructured():
    net = structured(model())
    expected = net(X)
    as_accelerate(net[0])
    unstructured(net)
    net[0].forward = net[0]._old_forward  # accelerate's remove_hook_from_module
    built = []
    net[0].parametrizations.weight[0].register_forward_hook(lambda *_: built.append(1))
    close(net(X), expected)
    assert built == [1]


def test_hooks_of_every_kind_run():
    net, calls = structured(model()), []
    layer = net[0]
    layer.register_forward_pre_hook(lambda module, args: calls.append("before"))
    layer.register_forward_hook(lambda module, args, y: calls.append("after"))
    layer.register_full_backward_pre_hook(lambda module, gy: calls.append("back"))
    layer.register_full_backward_hook(lambda module, gx, gy: calls.append("back again"))
    net(X.clone().requires_grad_()).sum().backward()
    assert calls == ["before", "after", "back", "back again"]
    assert layer(input=X).shape == (3, 8)  # its argument has the name that torch's has


def test_attention_that_reads_a_weight_without_calling_its_layer():
    attention = recipes.dctps(nn.MultiheadAttention(8, 2), density=0.2)
    structured(attention)
    reasons = {row.name: row.plain_because for row in summary(attention).rows}
    assert reasons["out_proj.weight"] == "nn.MultiheadAttention reads the weight and never calls the layer"
    assert not is_structured(attention.out_proj)


@pytest.fixture
def gloo(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def by_fsdp(net: nn.Module) -> nn.Module:
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    for layer in (net[0], net[2]):
        torch.distributed.fsdp.fully_shard(layer, mesh=mesh)
    return torch.distributed.fsdp.fully_shard(net, mesh=mesh)


WRAPPERS = {
    "none": lambda net: net,
    "compile": lambda net: torch.compile(net, backend="eager"),
    "in place": lambda net: (net.compile(backend="eager"), net)[1],
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": nn.parallel.DistributedDataParallel,
    "compiled DistributedDataParallel": lambda net: torch.compile(
        nn.parallel.DistributedDataParallel(net), backend="eager"
    ),
    "checkpoint": checkpoint_wrapper,
    "checkpoints inside": lambda net: nn.Sequential(checkpoint_wrapper(net[0]), net[1], checkpoint_wrapper(net[2])),
    "AveragedModel": torch.optim.swa_utils.AveragedModel,
}


COMPILED = ("compile", "in place", "compiled DistributedDataParallel")


@pytest.mark.parametrize("name", rest_slow(WRAPPERS, [name for name in WRAPPERS if name not in COMPILED]))
def test_wrappers_are_looked_through(name, gloo):
    net = model()
    expected, wrapped = net(X), WRAPPERS[name](net)
    close(wrapped(X), expected)
    assert len(list(subspaces(wrapped))) == 2
    structured(wrapped)
    layers = [space.module for _, space in subspaces(wrapped)]
    assert [is_structured(layer) for layer in layers] == [True, True]
    close(wrapped(X), expected)
    assert len(routes(wrapped, X, measure=False).rows) == 2
    wrapped(X).sum().backward()
    dense = materialize(wrapped)
    close(dense(X), expected)
    assert not list(subspaces(dense))
    dense(X).sum().backward()
    assert all(p.grad is not None for p in dense.parameters() if p.requires_grad)
    unstructured(wrapped)
    assert not any(is_structured(layer) for layer in layers)
    close(wrapped(X), expected)


@pytest.mark.parametrize("first", [False, True])
def test_a_structured_model_is_sharded_and_cannot_be_copied(first, gloo):
    net = model()
    expected = net(X)
    if first:
        structured(net)
    by_fsdp(net)
    structured(net)
    assert all(is_structured(space.module) for _, space in subspaces(net))
    close(net(X), expected)
    net(X).sum().backward()
    with pytest.raises(ValueError, match="model must be whole to become dense, got one sharded by fully_shard"):
        materialize(net)
    with pytest.raises(ValueError, match="model must be whole"):
        unregister(net)
    unstructured(net)
    close(net(X), expected)


def test_a_replica_that_shares_the_class_computes_with_its_own_theta():
    layer = structured(model())[0]
    replica = layer._replicate_for_data_parallel()  # as nn.DataParallel on several GPUs
    assert type(replica) is type(layer)
    replica._modules = copy.deepcopy(layer._modules)
    with torch.no_grad():
        replica.parametrizations.weight.original.zero_()
    replica.bias = layer.bias
    assert not torch.allclose(replica(X), layer(X))
