"""theta has a dtype of its own: nothing that is trained is lost to half precision, and w is rounded once."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize

from subspace import Key, load, materialize, recipes, register, save, share, structured, subspaces
from subspace._structured.forward import products_of
from subspace.embeddings import SRHT, Sparse
from subspace.offsets import DCT, Pretrained
from subspace.products import LINEAR
from subspace.products.choice.selection import possible
from subspace.products.problem import Problem
from tests.support.cases import EACH_ONCE, EACH_WITH_ONE, EMBEDDINGS, OFFSETS, rest_slow
from tests.support.strategies import numbers

close = torch.testing.assert_close
HALF = [torch.bfloat16, torch.float16]
each_half = pytest.mark.parametrize("dtype", HALF, ids=str)


def layer(dtype: torch.dtype, n_in: int = 8, n_out: int = 6) -> nn.Linear:
    module = nn.Linear(n_in, n_out).to(dtype)
    module.weight.data = numbers(0, n_out, n_in).to(dtype)
    return module


def half_layer(dtype: torch.dtype, offset_case, embedding_case, dim: int = 9):
    torch.manual_seed(0)  # a gradient of one number can be near 0, and its relative error anything
    module = layer(dtype)
    w, key = module.weight, Key(3)
    return module, register(module, "weight", offset_case.make(w, key), embedding_case.make(w, dim, key))


def unit_in_the_last_place(x: Tensor, dtype: torch.dtype) -> Tensor:
    info = torch.finfo(dtype)
    return info.eps * torch.exp2(x.abs().clamp_min(info.smallest_normal).log2().floor())


@pytest.mark.parametrize(
    "offset_case, embedding_case", rest_slow(EACH_WITH_ONE, EACH_WITH_ONE[::2]), ids=lambda case: case.name
)
@given(dtype=st.sampled_from(HALF), seed=st.integers(0, 99), size=st.sampled_from([1e-3, 1.0, 30.0]))
def test_the_weight_is_the_float64_sum_rounded_once_and_theta_gets_a_float32_gradient(
    offset_case, embedding_case, dtype, seed, size
):
    module, space = half_layer(dtype, offset_case, embedding_case)
    with torch.no_grad():
        space.theta.copy_(size * numbers(seed, len(space.theta)))
    d, U = (copy.deepcopy(part).double() for part in (space.offset, space.embedding))
    fixed, moved = d(), U(space.theta.detach().double())
    exact = fixed + moved
    assert module.weight.dtype == dtype
    assert space.theta.dtype == torch.float32
    of_float32 = 64 * torch.finfo(torch.float32).eps * (fixed.abs() + moved.abs().max())
    error = (module.weight.detach().double() - exact).abs()
    assert bool((error <= unit_in_the_last_place(exact, dtype) + of_float32).all())
    gradient = numbers(seed + 1, *exact.shape).to(dtype)
    module.weight.backward(gradient)
    assert space.theta.grad.dtype == torch.float32
    wanted = U.adjoint(gradient.double())
    assert (space.theta.grad.double() - wanted).norm() <= 1e-5 * wanted.norm()


@each_half
def test_small_steps_add_up(dtype):
    thetas = [half_layer(dtype, OFFSETS[1], case)[1].theta for case in EMBEDDINGS]
    for theta in thetas:
        theta.data.fill_(1)
        theta.grad = torch.ones_like(theta)
    optimizer = torch.optim.SGD(thetas, 1e-3)
    for _ in range(1000):
        optimizer.step()
    for theta, case in zip(thetas, EMBEDDINGS, strict=True):
        close(theta.detach(), torch.zeros_like(theta), rtol=0, atol=1e-4, msg=case.name)


DEFAULTS = {torch.float64: torch.float64, torch.float32: torch.float32} | dict.fromkeys(HALF, torch.float32)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("theta", [None, torch.float64, torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("base", DEFAULTS, ids=str)
def test_the_dtype_of_theta_is_float32_at_least_or_the_one_asked_for(base, theta, device):
    module = layer(base).to(device)
    w = module.weight
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    space = register(module, "weight", DCT(w), SRHT(w, 9, key=Key(0)), torch.ones(9), dtype=theta)
    assert space.theta is w
    assert space.theta.dtype == (theta or DEFAULTS[base])
    assert module.weight.dtype == base
    if device == "cpu":
        module(torch.ones(2, 8, dtype=base)).sum().backward()
        assert space.theta.grad.dtype == space.theta.dtype
        optimizer.step()
        assert not torch.equal(space.theta, torch.ones_like(space.theta))
        space.module.weight = torch.zeros(6, 8, dtype=base)
        close(space.theta.double(), -space.embedding.adjoint(DCT(w.new_empty(6, 8))()).double(), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
        lambda p: torch.optim.AdamW(p, 0.1, foreach=True),
        lambda p: torch.optim.AdamW(p, 0.1, fused=True),
        torch.optim.Adafactor,
    ],
)
@each_half
def test_optimizers_and_clipping_take_half_precision_beside_theta(make, dtype):
    module, space = half_layer(dtype, OFFSETS[1], EMBEDDINGS[1])
    before = [p.detach().clone() for p in module.parameters()]
    optimizer = make(module.parameters())
    for _ in range(2):
        optimizer.zero_grad()
        module(torch.ones(2, 8, dtype=dtype)).square().sum().backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
    assert all(not torch.equal(p, was) for p, was in zip(module.parameters(), before, strict=True))
    state = [t for t in optimizer.state[space.theta].values() if isinstance(t, Tensor) and t.shape == space.theta.shape]
    assert all(t.dtype == torch.float32 for t in state)


@pytest.mark.parametrize("offset_case, embedding_case", EACH_ONCE, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)], ids=str)
def test_structured_layers_of_half_precision_give_theta_float32_gradients(offset_case, embedding_case, dtype):
    module, space = half_layer(dtype, offset_case, embedding_case)
    x = numbers(1, 4, 8).to(dtype)
    module(x).square().sum().backward()
    plain, space.theta.grad = space.theta.grad, None
    structured(module)
    products = products_of(module)
    names = ["auto"]
    if products is not None and products.form is not None:
        w = products.form(space.theta.detach())
        assert w.values.dtype == torch.float32
        names += [route.name for route in possible(Problem.of(x, w, LINEAR))]
    for name in names:
        space.theta.grad = None
        structured(module, route=name)
        y = module(x)
        assert y.dtype == dtype
        y.square().sum().backward()
        assert space.theta.grad.dtype == torch.float32
        assert (space.theta.grad - plain).norm() <= 5e-2 * plain.norm()


@pytest.mark.parametrize(
    "recipe", rest_slow([recipes.sparse_finetuning, recipes.dctps, recipes.freezenet], [recipes.dctps])
)
@pytest.mark.parametrize("made, base", list(itertools.permutations(DEFAULTS, 2)), ids=str)
def test_a_checkpoint_of_one_dtype_loads_into_a_base_of_another_and_loses_nothing_of_theta(
    recipe, made, base, tmp_path
):
    def plain(dtype):
        model = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))
        for i, p in enumerate(model.parameters()):
            p.data = numbers(i, *p.shape).to(dtype)
        return model

    model = recipe(plain(made), density=0.3)
    for _, space in subspaces(model):
        space.theta.data.copy_(numbers(9, len(space.theta)))
    save(model, tmp_path / "c")
    again = load(plain(made).to(base), tmp_path / "c")
    for (_, one), (_, other) in zip(subspaces(model), subspaces(again), strict=True):
        assert torch.equal(one.theta, other.theta)
        assert other.theta.dtype == (torch.float64 if torch.float64 in (made, base) else torch.float32)
    x = numbers(7, 3, 16)
    close(again(x.to(base)).double(), model(x.to(made)).double(), rtol=5e-2, atol=0.3)


@each_half
def test_a_dense_copy_and_a_model_cast_afterwards_have_the_weights_dtype(dtype):
    module, space = half_layer(dtype, OFFSETS[1], EMBEDDINGS[1])
    dense = materialize(module)
    assert dense.weight.dtype == dtype
    assert torch.equal(dense.weight, module.weight)
    twin = copy.deepcopy(module)
    parametrize.remove_parametrizations(twin, "weight")
    assert torch.equal(twin.weight, module.weight)
    assert twin.weight.requires_grad
    assert {p.dtype for p in copy.deepcopy(module).float().parameters()} == {torch.float32}
    module.to(dtype)  # asked for, and so done
    assert space.theta.dtype == dtype
    close(module.weight.float(), dense.weight.float(), rtol=1e-2, atol=1e-2)


@each_half
def test_tensors_of_one_theta_may_differ_in_dtype(dtype):
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4).to(dtype))
    for i, module in enumerate(model):
        w = module.weight
        register(module, "weight", Pretrained(w), Sparse(w, 5, key=Key(i)), torch.zeros(5))
    share(model, nn.Parameter(torch.zeros(5)))
    model[1](model[0](torch.ones(2, 8)).to(dtype)).sum().backward()
    assert model[0].parametrizations.weight.original.grad.dtype == torch.float32
    with pytest.raises(ValueError, match=r"theta must be \(5,\) torch.float32 on cpu for weight, got \(5,\) torch.f"):
        share(model, nn.Parameter(torch.zeros(5, dtype=torch.float64)))


@each_half
def test_a_weight_under_another_parametrization_is_assigned_through_both(dtype):
    class Doubled(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return 2 * w

        def right_inverse(self, w: Tensor) -> Tensor:
            return w / 2

    module, space = half_layer(dtype, OFFSETS[1], EMBEDDINGS[1])
    target = module.weight.detach() + space.embedding(torch.ones_like(space.theta)).to(dtype)
    expected = space.theta.detach() + 1
    parametrize.register_parametrization(module, "weight", Doubled())
    module.weight = 2 * target
    close(space.theta.detach(), expected, rtol=2e-2, atol=2e-2)


def test_autocast_sums_in_float32():
    module = layer(torch.float32)
    w = module.weight
    for case in EMBEDDINGS:
        space = register(copy.deepcopy(module), "weight", DCT(w), case.make(w, 9, Key(1)))
        with torch.autocast("cpu", torch.bfloat16):
            inside = space.module.weight
        assert torch.equal(inside, space.module.weight), case.name
