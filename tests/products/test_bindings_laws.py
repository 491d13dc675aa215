"""A layer that remembers what its calls have in common computes what it would without, whatever changes in between."""

from __future__ import annotations

import copy
import cProfile
import pickle
import pstats
from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from subspace import Key, recipes, register, structured, subspaces
from subspace.embeddings import Direction, DirectSum, Sparse
from subspace.offsets import DCT, Hadamard, Pretrained, SignedDCT, Zero
from subspace.products.bindings import MOST, Bindings
from subspace.products.native import load

needs_kernels = pytest.mark.skipif(not load.is_available(), reason=load.status())

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(24, 16), (5, 24)),
    "linear-axes": (lambda: nn.Linear(12, 30, bias=False), (2, 3, 12)),
    "linear-one": (lambda: nn.Linear(12, 30), (12,)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, padding=1), (2, 4, 6, 5)),
    "conv2d-1x1": (lambda: nn.Conv2d(8, 12, 1, bias=False), (3, 8, 5, 4)),
    "conv2d-1x1-stride": (lambda: nn.Conv2d(8, 12, 1, stride=2), (3, 8, 5, 4)),
    "conv1d-1x1": (lambda: nn.Conv1d(8, 12, 1), (3, 8, 7)),
}
FORMS = {
    "dct+sparse": lambda w: (DCT(w, gain=0.7), Sparse(w, 9, key=Key(0))),
    "alpha+sparse": lambda w: (DCT(w), DirectSum([Direction(DCT(w), 1.5), Sparse(w, 9, key=Key(0))])),
    "sparse+alpha": lambda w: (Zero(w), DirectSum([Sparse(w, 9, key=Key(0)), Direction(DCT(w, gain=2.0))])),
    "hadamard+sparse": lambda w: (Hadamard(w), Sparse(w, 9, key=Key(0))),
    "sparse, in any order": lambda w: (DCT(w), Sparse(w, index=torch.tensor([17, 3, 11, 0, 5, 8]))),
    "sparse": lambda w: (Zero(w), Sparse(w, 9, key=Key(0))),
    "alpha": lambda w: (Zero(w), Direction(DCT(w))),
    "nothing": lambda w: (DCT(w), Sparse(w, 0, key=Key(0))),
    "pretrained+sparse": lambda w: (Pretrained(w), Sparse(w, 9, key=Key(0))),
    "pretrained+alpha": lambda w: (
        (d := Pretrained(w)),
        DirectSum([Sparse(w, 9, key=Key(0)), Direction(d)]),
    ),
    "signed": lambda w: (SignedDCT(w, key=Key(1)), Sparse(w, 9, key=Key(0))),
    "two alphas": lambda w: (Zero(w), DirectSum([Direction(DCT(w)), Direction(DCT(w), 2.0), Sparse(w, 9, key=Key(0))])),
}


def layer(name: str, form: str, route: str = "native") -> tuple[nn.Module, Tensor]:
    make, shape = LAYERS[name]
    module = make()
    space = register(module, "weight", *FORMS[form](module.weight))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        space.theta.copy_(torch.randn(space.theta.shape, generator=generator))
    route = "apart" if "pretrained" in form and route == "native" else route
    return structured(module, route), torch.randn(shape, generator=generator)


def strides(t: Tensor) -> list[int]:
    """Of the axes that have several places, for those of one say nothing."""
    return [stride for size, stride in zip(t.shape, t.stride(), strict=True) if size > 1]


def results(module: nn.Module, x: Tensor) -> list[Tensor]:
    """The output with and without gradients, and the gradients to the input and to everything that trains."""
    x = x.detach().requires_grad_()
    with torch.no_grad():
        plain = module(x)
    y = module(x)
    slope = torch.linspace(-1, 2, y.numel()).cos().to(y.dtype).reshape(y.shape)
    found = torch.autograd.grad(y, [x, *(p for p in module.parameters() if p.requires_grad)], slope)
    assert strides(y) == strides(plain)
    return [plain, y.detach(), *found]


def check(module: nn.Module, x: Tensor) -> None:
    """Against a copy that is bound to nothing."""
    reference = copy.deepcopy(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bindings, "find", lambda *_: None)
        expected = results(reference, x)
    for a, b in zip(expected, results(module, x), strict=True):
        assert (a.dtype, a.shape, strides(a)) == (b.dtype, b.shape, strides(b))
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def bound(module: nn.Module, x: Tensor) -> bool:
    """Whether its products are bound."""
    module(x)
    ((_, space),) = subspaces(module)
    return any(found.binding is not None for found in space.parametrization.products.bindings._found.values())


@needs_kernels
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", LAYERS)
def test_a_bound_product_is_the_routes(name, form):
    if name == "conv2d" and "hadamard" in form:
        return  # which the native route has not
    module, x = layer(name, form)
    layouts = [x, x.contiguous(memory_format=torch.channels_last)] if name == "conv2d-1x1" else [x]
    for x in layouts:
        for _ in range(2):
            check(module, x)
    unbound = form in ("signed", "two alphas", "pretrained+alpha") or name == "conv2d-1x1-stride"
    unbound |= (name, form[-5:]) == ("conv2d", "order") or ("pretrained" in form and "conv" in name)
    assert bound(module, x) != unbound


def sparse_of(module: nn.Module) -> Sparse:
    ((_, space),) = subspaces(module)
    return next(part for part in space.embedding.parts() if isinstance(part, Sparse))


def size_of(module: nn.Module) -> int:
    ((_, space),) = subspaces(module)
    return space.shape.numel()


def move(module: nn.Module, x: Tensor) -> Tensor:
    index = sparse_of(module).index
    index.copy_((index + 5) % size_of(module))
    return x


def replace_data(module: nn.Module, x: Tensor) -> Tensor:
    index = sparse_of(module).index
    index.data = (index + 7) % size_of(module)
    return x


def replace_index(module: nn.Module, x: Tensor) -> Tensor:
    part = sparse_of(module)
    part.index = (part.index + 3) % size_of(module)
    return x


def write_base(module: nn.Module, x: Tensor) -> Tensor:
    ((_, space),) = subspaces(module)
    if isinstance(space.offset, Pretrained):
        space.offset.weight.mul_(-2)
    return x


def replace_base(module: nn.Module, x: Tensor) -> Tensor:
    ((_, space),) = subspaces(module)
    if isinstance(space.offset, Pretrained):
        space.offset.weight = space.offset.weight.flip(0) + 1
    return x


def write_theta(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        next(subspaces(module))[1].theta.mul_(-2)
    return x


def replace_theta(module: nn.Module, x: Tensor) -> Tensor:
    theta = next(subspaces(module))[1].theta
    theta.data = theta.detach().repeat_interleave(2)[::2] + 1  # with holes
    return x


def there_and_back(module: nn.Module, x: Tensor) -> Tensor:
    module.double().float()
    return x


def change_threads(module: nn.Module, x: Tensor) -> Tensor:
    torch.set_num_threads(3 - torch.get_num_threads())
    return x


def freeze(module: nn.Module, x: Tensor) -> Tensor:
    theta = next(subspaces(module))[1].theta
    theta.requires_grad_(not theta.requires_grad)
    return x


def turn(module: nn.Module, x: Tensor) -> Tensor:
    """Another memory layout."""
    if x.ndim == 4 and x.is_contiguous():
        return x.contiguous(memory_format=torch.channels_last)
    return x.contiguous() if not x.is_contiguous() else x.repeat_interleave(2, -1)[..., ::2]


CHANGES = [
    move,
    replace_data,
    replace_index,
    write_base,
    replace_base,
    write_theta,
    replace_theta,
    there_and_back,
    change_threads,
    freeze,
    turn,
    lambda module, x: torch.cat([x, x]) if x.ndim > 1 else x,
    lambda module, x: x[:1] if x.ndim > 1 else x,
    lambda module, x: x[:0] if x.ndim > 1 else x,
    lambda module, x: x.repeat(2, 1, 1, 1) if x.ndim > 2 else x,
]


@needs_kernels
@pytest.mark.parametrize("form", ["alpha+sparse", "pretrained+sparse"])
@pytest.mark.parametrize("change", range(len(CHANGES)))
def test_each_change_is_followed(change, form):
    module, x = layer("linear", form)
    threads = torch.get_num_threads()
    try:
        check(module, x)
        check(module, CHANGES[change](module, x))
    finally:
        torch.set_num_threads(threads)


@needs_kernels
@given(
    st.sampled_from(["linear", "linear-axes", "conv2d", "conv2d-1x1"]),
    st.sampled_from(["dct+sparse", "alpha+sparse", "sparse", "pretrained+sparse"]),
    st.sampled_from(["native", "auto"]),
    st.lists(st.sampled_from(CHANGES), max_size=6),
)
def test_whatever_changes_between_calls_is_followed(name, form, route, changes):
    assume((name, route) != ("conv2d", "native") or turn not in changes)  # a format that the route has not
    module, x = layer(name, form, route)
    threads = torch.get_num_threads()
    try:
        check(module, x)
        for change in changes:
            shape = x.shape
            x = change(module, x)
            x = x if x.ndim == len(shape) else x.reshape(shape)
            check(module, x)
    finally:
        torch.set_num_threads(threads)


@needs_kernels
def test_copies_are_bound_to_their_own_theta():
    module, x = layer("linear", "alpha+sparse")
    before = module(x)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), copy.copy(module)):
        assert torch.equal(other(x), before)
    other = copy.deepcopy(module)
    write_theta(other, x)
    assert torch.equal(module(x), before)
    assert not torch.allclose(other(x), before)
    zeros = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    assert not torch.func.functional_call(module, zeros, (x,)).allclose(before)


@needs_kernels
@pytest.mark.parametrize("length", [0, 1, 9, 11, 1000])
def test_a_theta_of_another_length_is_an_error(length):
    module, x = layer("linear", "alpha+sparse")
    module(x)
    with pytest.raises((ValueError, RuntimeError)):
        torch.func.functional_call(module, {"parametrizations.weight.original": torch.zeros(length)}, (x,))


@needs_kernels
def test_an_index_that_is_written_to_between_the_passes_is_refused():
    module, x = layer("linear", "alpha+sparse")
    y = module(x)
    move(module, x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


HOOKS = {
    "as they were": lambda t: t,
    "in half precision": lambda t: t.to(torch.bfloat16).to(t.dtype),
    "of another dtype": lambda t: t.double() if t.is_floating_point() else t,
    "with holes": lambda t: t.repeat_interleave(2, -1)[..., ::2],
}


@needs_kernels
@pytest.mark.parametrize("hook", HOOKS)
def test_saved_tensors_may_come_back_otherwise(hook):
    module, x = layer("linear", "alpha+sparse")
    (theta,) = (p for n, p in module.named_parameters() if "original" in n)
    x.requires_grad_()
    expected = torch.autograd.grad(module(x).square().sum(), [x, theta])
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, HOOKS[hook]):
        y = module(x).square().sum()
    for a, b in zip(expected, torch.autograd.grad(y, [x, theta]), strict=True):
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.2)


@needs_kernels
def test_saved_tensors_of_another_shape_are_refused():
    module, x = layer("linear", "alpha+sparse")
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t[:1]):
        y = module(x)
    with pytest.raises(ValueError, match="saved tensors must come back in their shapes"):
        y.sum().backward()


@needs_kernels
def test_a_layer_forgets_what_is_too_much():
    module, x = layer("linear", "alpha+sparse")
    for n in range(1, 2 * MOST):
        module(x[:1].expand(n, -1))
    assert len(next(subspaces(module))[1].parametrization.products.bindings._found) <= MOST


@needs_kernels
@pytest.mark.parametrize("form", ["dct+sparse", "sparse, in any order"])
@pytest.mark.parametrize("name", LAYERS)
def test_products_are_the_same_of_an_index_that_counts_no_versions(name, form):
    module, x = layer(name, form)
    with torch.inference_mode():
        part, expected = sparse_of(module), module(x)
        part.index = part.index.clone()
        for _ in range(20):
            torch.testing.assert_close(module(x), expected)


def calls(do: Callable[[], object]) -> int:
    """Functions called, Python's and those of its extensions, once everything is set up."""
    do()
    profile = cProfile.Profile()
    profile.runcall(do)
    return pstats.Stats(profile).total_calls


@needs_kernels
def test_a_call_costs_little_python():
    module, x = recipes.dctps(nn.Sequential(nn.Linear(64, 64, bias=False)), density=0.01, seed=0), torch.randn(1, 64)
    structured(module, "native")
    with torch.no_grad():
        assert calls(lambda: module(x)) <= 70
    x.requires_grad_()
    gy, wanted = torch.ones(1, 64), [x, *module.parameters()]
    assert calls(lambda: torch.autograd.grad(module(x), wanted, gy)) <= 180
