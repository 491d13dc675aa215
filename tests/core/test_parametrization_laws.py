"""w = d + U theta on any tensor of any module, trained by anything that trains Parameters."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from subspace import Key, SubspaceParametrization, materialize, register, share, subspaces
from subspace.embeddings import Gaussian, Identity, Sparse
from subspace.offsets import DCT, Zero
from tests.support.cases import EACH_ONCE, EACH_WITH_ONE, EMBEDDINGS, MODULES, OFFSETS, ModuleCase, each_with_one
from tests.support.strategies import embedding, fractions, matrix, numbers, offset, seeds, shapes

close = torch.testing.assert_close
each_module = pytest.mark.parametrize("module_case", MODULES, ids=lambda case: case.name)
each_pair = pytest.mark.parametrize("offset_case, embedding_case", EACH_WITH_ONE, ids=lambda case: case.name)


def built(case: ModuleCase) -> nn.Module:
    """The module in float64, its Parameters drawn from keys."""
    module = case.make().double()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.from_numpy(Key(0).fold(name).normal(parameter.numel())).reshape(parameter.shape))
    return module


def registered(case: ModuleCase, offset_case, embedding_case, seed: int = 0, fraction: float = 0.4):
    module = built(case)
    weight = getattr(module, case.tensor)
    key, dim = Key(seed), 1 + round(fraction * (weight.numel() - 1))
    return module, register(module, case.tensor, offset_case.make(weight, key), embedding_case.make(weight, dim, key))


def fits(case: ModuleCase, offset_case) -> bool:
    return not offset_case.fans or getattr(case.make(), case.tensor).ndim > 1


@each_pair
@given(module_case=st.sampled_from(MODULES), seed=st.integers(0, 99), fraction=fractions)
def test_the_weight_is_d_plus_u_theta_and_theta_gets_its_gradient(
    offset_case, embedding_case, module_case, seed, fraction
):
    if not fits(module_case, offset_case):
        return
    module, space = registered(module_case, offset_case, embedding_case, seed, fraction)
    dense, name = built(module_case), module_case.tensor
    d, U = space.parametrization.offset, space.parametrization.embedding
    with torch.no_grad():
        space.theta.copy_(numbers(seed + 1, U.dim))
        getattr(dense, name).copy_((d().flatten() + matrix(U) @ space.theta).reshape(d.shape))
    close(getattr(module, name), getattr(dense, name))
    close(module_case.call(module), module_case.call(dense))
    module_case.call(module).square().sum().backward()
    module_case.call(dense).square().sum().backward()
    close(space.theta.grad, matrix(U).T @ getattr(dense, name).grad.flatten())
    rest = {n: p.grad for n, p in module.named_parameters() if p is not space.theta}
    for n, gradient in rest.items():
        close(gradient, dense.get_parameter(n).grad)
    assert sum(p.numel() for p in module.parameters()) == U.dim + sum(
        p.numel() for n, p in dense.named_parameters() if n != name
    )


@each_module
def test_theta_starts_nearest_to_the_weight(module_case):
    module = built(module_case)
    before = getattr(module, module_case.tensor).detach().clone()
    d, U = DCT(before), Sparse(before, (before.numel() + 1) // 2, key=Key(0))
    space = register(module, module_case.tensor, d, U)
    nearest = d().flatten().clone()
    nearest[U.index] = before.flatten()[U.index]
    close(getattr(module, module_case.tensor).detach().flatten(), nearest)
    getattr(module, module_case.tensor)
    with torch.no_grad():
        setattr(module, module_case.tensor, 2 * before)
    close(space.theta.detach(), 2 * before.flatten()[U.index] - d().flatten()[U.index])


@each_pair
@given(shape=shapes, seed=seeds)
def test_right_inverse_inverts_and_projects(offset_case, embedding_case, shape, seed):
    d = offset(offset_case, shape, seed)
    U = embedding(embedding_case, d.shape, 0.3, seed)
    space = SubspaceParametrization(d, U)
    theta, w = numbers(seed + 1, U.dim), numbers(seed + 2, *d.shape)
    close(space.right_inverse(space(theta)), theta, rtol=1e-6, atol=1e-6)
    projection = space(space.right_inverse(w))
    close(U.adjoint(w - projection), torch.zeros(U.dim, dtype=w.dtype), rtol=0, atol=1e-6)


@each_pair
def test_linear_never_needs_the_weight(offset_case, embedding_case):
    for shape in ((5, 8), (8, 5)):
        d, U = offset(offset_case, shape), embedding(embedding_case, shape)
        space, theta, x = SubspaceParametrization(d, U), numbers(1, U.dim), numbers(2, 3, shape[1])
        close(space.linear(theta, x), x @ space(theta).T)


class Net(nn.Module):
    """Convolution, norm and linear layers, in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4)
        self.linear = nn.Linear(4 * 4 * 4, 3)
        self.double()
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(0.3 * numbers(sum(map(ord, name)), *parameter.shape))

    def forward(self, x):
        x = self.depthwise(self.norm(self.conv(x)).relu()).relu()
        return self.linear(x.flatten(1))


X, Y = numbers(7, 6, 1, 6, 6), torch.tensor([0, 1, 2, 0, 1, 2])
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05),
    "momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=1e-3),
    "adam": lambda p: torch.optim.Adam(p, 1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2),
}


def train(net: nn.Module, optimizer, steps: int = 4) -> list[float]:
    losses = []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(net(X), Y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_zero_and_identity_is_ordinary_training_step_for_step(optimizer):
    plain, ours = Net(), Net()
    for module in (ours.conv, ours.depthwise, ours.linear):
        register(module, "weight", Zero(module.weight), Identity(module.weight))
    losses = train(plain, OPTIMIZERS[optimizer](plain.parameters()))
    assert losses == train(ours, OPTIMIZERS[optimizer](ours.parameters()))
    assert torch.equal(plain.conv.weight, ours.conv.weight)


def test_orthonormal_u_and_sgd_is_projected_gradient_descent():
    plain, ours = Net(), Net()
    U = Sparse(plain.linear.weight, 60, key=Key(0))
    register(ours.linear, "weight", DCT(plain.linear.weight), U)
    with torch.no_grad():
        plain.linear.weight.copy_(ours.linear.weight)
    projector = matrix(U) @ matrix(U).T
    plain.linear.weight.register_hook(lambda g: (projector @ g.flatten()).reshape(g.shape))
    for net in (plain, ours):
        train(net, OPTIMIZERS["sgd"](net.parameters()))
    close(plain.linear.weight, ours.linear.weight)


@pytest.mark.parametrize("case, optimizer", each_with_one(EMBEDDINGS, OPTIMIZERS))
def test_training_never_leaves_the_subspace(case, optimizer):
    net = Net()
    d = DCT(net.linear.weight)
    U = case.make(net.linear.weight, 20, Key(0))
    space = register(net.linear, "weight", d, U)
    before = net.linear.weight.detach().clone()
    train(net, OPTIMIZERS[optimizer](net.parameters()))
    moved = net.linear.weight.detach() - before
    assert moved.norm() > 1e-5
    basis = torch.linalg.qr(matrix(U)).Q
    close(basis @ (basis.T @ moved.flatten()), moved.flatten())
    close(net.linear.weight.detach(), d() + U(space.theta.detach()))


def test_a_shared_theta_gets_the_sum_of_the_gradients():
    net = Net()
    layers = {"conv": net.conv, "depthwise": net.depthwise, "linear": net.linear}
    for name, module in layers.items():
        w = module.weight
        register(module, "weight", DCT(w), Gaussian(w, 10, key=Key(0).fold(name), of=500))
    theta = nn.Parameter(numbers(3, 10))
    share(net, theta)
    assert all(space.theta is theta for _, space in subspaces(net))
    assert sum(p is theta for p in net.parameters()) == 1
    dense = materialize(net)
    for model in (net, dense):
        nn.functional.cross_entropy(model(X), Y).backward()
    expected = sum(
        matrix(space.parametrization.embedding).T @ dense.get_parameter(name).grad.flatten()
        for name, space in subspaces(net)
    )
    close(theta.grad, expected)


@each_module
def test_materialize_gives_a_plain_copy_and_leaves_the_model(module_case):
    module, space = registered(module_case, OFFSETS[1], EMBEDDINGS[1])
    model = nn.Sequential(module)
    expected = module_case.call(module)
    dense = materialize(model)[0]
    assert type(dense) is type(module_case.make())
    assert not list(subspaces(dense))
    assert {n for n, _ in dense.named_parameters()} == {n for n, _ in module_case.make().named_parameters()}
    close(module_case.call(dense), expected)
    assert torch.equal(getattr(dense, module_case.tensor), getattr(module, module_case.tensor))
    with torch.no_grad():
        getattr(dense, module_case.tensor).zero_()
    close(module_case.call(module), expected)
    assert [name for name, _ in subspaces(model)] == [f"0.{module_case.tensor}"]
    assert space.theta.requires_grad


@each_module
def test_state_dict_and_deepcopy_restore_the_model(module_case):
    module, _ = registered(module_case, OFFSETS[1], EMBEDDINGS[1])
    expected = module_case.call(module)
    again, other = registered(module_case, OFFSETS[1], EMBEDDINGS[1])
    other.theta.data.zero_()
    again.load_state_dict(module.state_dict())
    close(module_case.call(again), expected)
    close(module_case.call(copy.deepcopy(module)), expected)
    kept = {n.split(".")[-1] for n in module.state_dict() if "parametrizations" in n}
    assert kept == {"original", "_extra_state"}


class Beside(nn.Module):
    """Layers beside each other, which are compiled at once."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 6).double() for _ in EACH_ONCE)
        for layer, (offset_case, embedding_case) in zip(self.layers, EACH_ONCE, strict=True):
            w = layer.weight
            register(layer, "weight", offset_case.make(w, Key(0)), embedding_case.make(w, 20, Key(0)))

    def forward(self, x):
        return [layer(x) for layer in self.layers]


@pytest.mark.compile
def test_every_offset_and_embedding_compiles_without_a_graph_break():
    torch._dynamo.reset()
    layers, x = Beside(), numbers(0, 5, 8)
    close(torch.compile(layers, fullgraph=True, backend="aot_eager")(x), layers(x))


def test_functional_call_grad_vmap_and_export_work_on_theta():
    net = Net().eval()
    space = register(net.linear, "weight", DCT(net.linear.weight), Sparse(net.linear.weight, 20, key=Key(0)))
    name = "linear.parametrizations.weight.original"

    def loss(theta):
        return nn.functional.cross_entropy(torch.func.functional_call(net, {name: theta}, (X,)), Y)

    nn.functional.cross_entropy(net(X), Y).backward()
    close(torch.func.grad(loss)(space.theta.detach()), space.theta.grad)
    thetas = numbers(0, 3, 20)
    close(torch.vmap(loss)(thetas), torch.stack([loss(theta) for theta in thetas]))
    close(torch.export.export(net, (X,)).module()(X), net(X))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_the_dtype_of_the_plain_layer(dtype):
    plain, ours = nn.Linear(16, 8), nn.Linear(16, 8)
    space = register(ours, "weight", DCT(ours.weight), Sparse(ours.weight, 30, key=Key(0)))
    x = torch.ones(2, 16)
    with torch.autocast("cpu", dtype):
        assert ours(x).dtype == plain(x).dtype == dtype
        ours(x).sum().backward()
    assert space.theta.grad.dtype == torch.float32
