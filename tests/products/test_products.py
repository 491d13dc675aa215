"""Every route of every product equals a dense weight, built here by scipy, in torch's own operations with autograd."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import scipy.fft
import scipy.linalg
import torch
import torch.nn.functional as F
from torch import Tensor

from subspace import Key, products
from subspace.products import ROUTES, Geometry, Weight
from subspace.products.choice import selection
from subspace.products.native import load
from subspace.products.parts import sparse_conv, sparse_matrix
from subspace.products.routes import fft
from tests.support.cases import each_with_one, rest_slow

TRANSFORMS = ["dct", "hadamard", "zero"]
EVERY = [route.name for route in ROUTES]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 6e-2, torch.float16: 8e-3}
ORDERS = ["sorted", "shuffled"]
SUBSETS = [subset for subset in itertools.product([False, True], repeat=3) if any(subset)]


@dataclass(frozen=True)
class Case:
    """A product: the shapes of w and x, the nonzeros of S, and for a convolution its stride, padding, ...; or ()."""

    shape: tuple[int, ...]
    x: tuple[int, ...]
    k: int = 7
    geometry: tuple[Any, ...] = field(default=())

    def __str__(self) -> str:
        return f"{self.shape}, {self.x}, k={self.k}, {self.geometry}".replace(" ", "")

    def product(self, x, scale, values, index, transform, route="remat", signs=None):
        w = Weight(scale, values, index, self.shape, transform, signs)
        if not self.geometry:
            return products.linear(x, w, route)
        return products.conv(x, w, Geometry(self.shape[2:], *self.geometry), route)

    def routes(self, transform, dtype=torch.float64, last=False):
        """The routes that must be possible."""
        compiled = {"native"} if load.is_available() and dtype != torch.float64 else set()
        if not self.geometry:
            return {"dense", "remat", "fft"} | compiled
        stride, *_, groups = self.geometry
        one = set(self.shape[2:]) == {1}
        wide = dtype in (torch.float64, torch.float32)
        found = {"dense", "remat"} | ({"channels_last"} if len(self.x) > 3 and wide else set())
        if one:
            return found | ({"fft"} | compiled if groups == 1 else set())
        if transform != "hadamard":
            found.add("bottleneck")
        narrow = len(self.x) == 4 and groups == 1 and set(stride) == {1} and dtype == torch.float32 and not last
        return found | (compiled if narrow and transform != "hadamard" else set())


LINEAR = [
    Case((5, 8), (3, 8)),
    Case((8, 5), (2, 3, 5)),
    Case((6, 6), (6,)),
    Case((11, 13), (20, 13)),
    Case((1, 1), (4, 1), k=1),
    Case((1, 9), (9, 9), k=9),
    Case((16, 32), (9, 32), k=0),
    Case((12, 7), (0, 7)),
    Case((12, 7), (10, 7), k=84),
    Case((300, 260), (17, 260), k=500),
    Case((70, 1200), (3, 1200), k=500),
]
CONV2D = [
    Case((6, 4, *kernel), (2, 4 * groups, 7, 6), 20, (stride, padding, dilation, groups))
    for kernel, stride, padding, dilation, groups in itertools.product(
        [(1, 1), (3, 3), (2, 3)], [(1, 1), (2, 1), (3, 2)], [(0, 0), (1, 2)], [(1, 1), (1, 2)], [1, 2]
    )
]
CONV = [
    Case((6, 4, 3), (2, 4, 9), 20, ((2,), (1,), (2,), 1)),
    Case((6, 4, 1), (2, 4, 9), 5, ((2,), (1,), (1,), 1)),
    Case((6, 2, 5), (1, 6, 9), 20, ((1,), (4,), (1,), 3)),
    Case((4, 3, 2, 1, 3), (2, 3, 4, 3, 5), 20, ((1, 1, 2), (0, 1, 1), (2, 1, 1), 1)),
    Case((4, 8, 1, 1, 1), (2, 8, 4, 3, 2), 9, ((1, 1, 2), (0, 0, 0), (1, 1, 1), 1)),
    Case((6, 1, 3, 3), (2, 6, 5, 5), 10, ((1, 1), (1, 1), (1, 1), 6)),
    Case((5, 3, 7, 7), (1, 3, 9, 8), 60, ((2, 2), (3, 3), (1, 1), 1)),
    Case((8, 3, 3, 3), (2, 3, 2, 2), 0, ((1, 1), (1, 1), (1, 1), 1)),
    Case((8, 3, 3, 3), (0, 3, 4, 4), 6, ((1, 1), (1, 1), (1, 1), 1)),
    Case((1, 1, 3, 3), (1, 1, 4, 4), 2, ((1, 1), (0, 0), (1, 1), 1)),
    Case((40, 24, 3, 3), (2, 24, 6, 5), 80, ((1, 1), (1, 1), (1, 1), 1)),
    Case((48, 30, 1, 1), (2, 30, 5, 5), 80, ((1, 1), (0, 0), (1, 1), 1)),
]
SOME = [LINEAR[0], LINEAR[9], CONV[0], *CONV[2:8], *CONV[10:], *CONV2D[1::7]]


def matrix(n_out: int, n_in: int, transform: str) -> np.ndarray:
    q = max(n_out, n_in)
    if transform == "dct":
        full = scipy.fft.dct(np.eye(q), axis=0, norm="ortho")
    else:
        full = scipy.linalg.hadamard(1 << (q - 1).bit_length()) / q**0.5
    return full[:n_out, :n_in].astype(np.float64)


def dense(case: Case, transform: str, scale: Tensor | None, values: Tensor, index: Tensor) -> Tensor:
    """w in float64, differentiable."""
    w = torch.zeros(int(np.prod(case.shape)), dtype=torch.float64).index_put((index,), values.double())
    if scale is not None:
        n_out, channels, *kernel = case.shape
        t = matrix(n_out, int(np.prod(case.shape[1:])), transform).reshape(n_out, *kernel, channels)
        w = w + scale.double() * torch.from_numpy(np.moveaxis(t, -1, 1).copy()).flatten()
    return w.reshape(case.shape)


def expected(case, x, scale, values, index, transform):
    w = dense(case, transform, scale, values, index)
    if not case.geometry:
        return F.linear(x.double(), w)
    return convolution(case, x.double(), w)


def convolution(case, x, w):
    return [F.conv1d, F.conv2d, F.conv3d][len(case.shape) - 3](x, w, None, *case.geometry)


def inputs(case: Case, transform: str, dtype=torch.float64, last=False, seed=0, grad=True, order="sorted"):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(case.x, generator=generator, dtype=torch.float64).to(dtype)
    if last:
        x = x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)
    scale = None if transform == "zero" else torch.tensor([0.7], dtype=dtype)
    values = torch.randn(case.k, generator=generator, dtype=torch.float64).to(dtype)
    index = torch.randperm(int(np.prod(case.shape)), generator=generator)[: case.k]
    index = index.sort().values if order == "sorted" else index
    for tensor in (x, scale, values):
        if tensor is not None:
            tensor.requires_grad_(grad)
    return x, scale, values, index


def gradients(y: Tensor, *wanted: Tensor | None) -> list[Tensor | None]:
    gy = torch.linspace(-1, 2, y.numel(), dtype=torch.float64).sin().to(y.dtype).reshape(y.shape)
    found = iter(torch.autograd.grad(y, [t for t in wanted if t is not None], gy))
    return [None if t is None else next(found) for t in wanted]


def close(actual: Tensor, wanted: Tensor, tolerance: float) -> bool:
    if actual.shape != wanted.shape:
        return False
    actual, wanted = actual.detach().double(), wanted.detach()
    error = (actual - wanted).abs().max() if wanted.numel() else 0.0
    return float(error) <= tolerance * max(1.0, float(wanted.abs().max()) if wanted.numel() else 0.0)


def check(case: Case, transform: str, route: str, dtype=torch.float64, last=False, order="shuffled") -> None:
    x, scale, values, index = inputs(case, transform, dtype, last, order=order)
    y = case.product(x, scale, values, index, transform, route)
    exact = [None if t is None else t.detach().double().requires_grad_() for t in (x, scale, values)]
    wanted = expected(case, *exact, index, transform)
    assert y.dtype == dtype
    assert close(y, wanted, TOLERANCE[dtype]), (route, "y")
    found, exact = gradients(y, x, scale, values), gradients(wanted, *exact)
    for tensor, actual, right in zip(("x", "scale", "values"), found, exact, strict=True):
        if right is not None:
            assert actual.dtype == dtype
            assert close(actual, right, TOLERANCE[dtype]), (route, tensor)
    if last:
        form = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
        assert y.is_contiguous(memory_format=form)
        (gx,) = gradients(case.product(x, scale, values, index, transform, route), x)
        assert gx.is_contiguous(memory_format=form)


@pytest.mark.parametrize("transform", rest_slow(TRANSFORMS, ["dct", "zero"]))
@pytest.mark.parametrize("case, order", each_with_one([*LINEAR, *CONV, *CONV2D], ORDERS), ids=str)
def test_every_route_is_the_dense_product(case, transform, order):
    for route in sorted(case.routes(transform)):
        check(case, transform, route, order=order)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("transform", rest_slow(TRANSFORMS, ["dct"]))
@pytest.mark.parametrize("case, order", each_with_one(SOME, ORDERS), ids=str)
def test_every_route_is_the_dense_product_in_every_dtype(case, transform, dtype, order):
    for route in sorted(case.routes(transform, dtype)):
        check(case, transform, route, dtype, order=order)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("case", [case for case in [*CONV, *CONV2D[::5]] if len(case.x) > 3], ids=str)
def test_every_route_keeps_channels_last(case, transform):
    for route in sorted(case.routes(transform, torch.float32, last=True)):
        check(case, transform, route, torch.float32, last=max(case.x[1:2]) > 1 and case.x[0] > 0)


@pytest.mark.parametrize("case", [LINEAR[9], CONV[5], CONV[10], CONV2D[3]], ids=str)
def test_the_scale_may_be_fixed_a_scalar_or_tiny(case):
    for route, size in itertools.product(sorted(case.routes("dct")), [(), (1,)]):
        x, _, values, index = inputs(case, "dct")
        scale = torch.full(size, 1e-9, dtype=torch.float64, requires_grad=True)
        actual = gradients(case.product(x, scale, values, index, "dct", route), x, scale, values)
        wanted = gradients(expected(case, x, scale, values, index, "dct"), x, scale, values)
        assert all(close(a, w, 1e-12) for a, w in zip(actual, wanted, strict=True)), route
        fixed = gradients(case.product(x, scale.detach(), values, index, "dct", route), x, values)
        assert all(close(a, w, 1e-12) for a, w in zip(fixed, wanted[::2], strict=True)), route


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("case", [LINEAR[0], CONV[3], CONV[4], CONV[10], CONV2D[13]], ids=str)
def test_only_the_gradients_asked_for_are_given(case, transform):
    wanted = gradients(expected(case, *(full := inputs(case, transform)), transform), *full[:3])
    for route, subset in itertools.product(sorted(case.routes(transform)), SUBSETS):
        x, scale, values, index = inputs(case, transform, grad=False)
        trained = [
            t if t is None else t.requires_grad_(need) for t, need in zip((x, scale, values), subset, strict=True)
        ]
        if not any(t is not None and t.requires_grad for t in trained):
            continue
        case.product(x, scale, values, index, transform, route).square().sum().div(2).backward()
        exact = inputs(case, transform)
        expected(case, *exact, transform).square().sum().div(2).backward()
        for t, right, need in zip(trained, exact[:3], subset, strict=True):
            if t is not None:
                assert (t.grad is not None) == need
                assert t.grad is None or close(t.grad, right.grad, 1e-11), (route, subset)
    assert wanted[0] is not None


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("case", [LINEAR[1], CONV[0], CONV2D[20]], ids=str)
def test_gradients_of_every_order_and_mode_are_right(case, transform):
    *tensors, index = inputs(case, transform)
    trained = [t for t in tensors if t is not None]

    for route in sorted(case.routes(transform)):

        def product(*given, route=route):
            x, *scale, values = given
            return case.product(x, scale[0] if scale else None, values, index, transform, route)

        assert torch.autograd.gradcheck(product, trained, check_forward_ad=True, fast_mode=True)
        assert torch.autograd.gradgradcheck(product, trained, fast_mode=True)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("case", [LINEAR[1], CONV[0], CONV2D[20]], ids=str)
def test_torch_func_transforms_it(case, transform):
    x, scale, values, index = inputs(case, transform, grad=False)
    many = torch.stack([values, 2 * values, -values])

    def actual(x, values):
        return case.product(x, scale, values, index, transform)

    def wanted(x, values):
        return expected(case, x, scale, values, index, transform)

    for f in (
        lambda product: torch.func.vmap(product, (None, 0))(x, many),
        lambda product: torch.func.grad(lambda x, v: product(x, v).sin().sum(), (0, 1))(x, values),
        lambda product: torch.func.jvp(product, (x, values), (x.cos(), values.cos()))[1],
        lambda product: torch.func.vmap(torch.func.grad(lambda v: product(x, v).sin().sum()))(many),
    ):
        pairs = zip(torch.utils._pytree.tree_leaves(f(actual)), torch.utils._pytree.tree_leaves(f(wanted)), strict=True)
        assert all(close(a, w, 1e-11) for a, w in pairs)


@pytest.mark.parametrize(
    "case, last", [(LINEAR[1], False), (CONV[0], False), (CONV2D[20], True), (CONV[10], True)], ids=str
)
def test_compiled_graphs_have_no_breaks(case, last):
    x, scale, values, index = inputs(case, "dct", torch.float32, last)

    def product(x, scale, values):
        return case.product(x, scale, values, index, "dct").sin()

    torch._dynamo.reset()
    eager, compiled = (
        product(x, scale, values),
        torch.compile(product, fullgraph=True, backend="aot_eager")(x, scale, values),
    )
    assert compiled.stride() == eager.stride()
    assert close(compiled, eager, 1e-6)
    pairs = zip(gradients(compiled, x, scale, values), gradients(eager, x, scale, values), strict=True)
    assert all(close(a, w, 1e-5) for a, w in pairs)


@pytest.mark.parametrize(
    "case, last", [(LINEAR[1], False), (CONV[0], False), (CONV2D[20], True), (CONV[11], True)], ids=str
)
def test_the_operators_keep_torchs_contract(case, last):
    tests = "test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static"
    for route in sorted(case.routes("dct", torch.float32, last)):
        what = (
            *inputs(case, "dct", torch.float32, last),
            *(None, None),
            case.shape,
            "dct",
            *(case.geometry or ((), (), (), 1)),
            route,
        )
        torch.library.opcheck(torch.ops.subspace.product.default, what, test_utils=tests)


@pytest.mark.parametrize("case", [LINEAR[1], CONV2D[20], CONV[11]], ids=str)
def test_autocast_is_that_of_the_dense_product(case):
    x, scale, values, index = inputs(case, "dct", torch.float32)
    wanted = expected(case, x, scale, values, index, "dct")
    right = gradients(wanted, x, scale, values)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert case.product(x.double(), scale, values, index, "dct").dtype == torch.float64
    for route in sorted(case.routes("dct", torch.bfloat16)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = case.product(x, scale, values, index, "dct", route)
        assert y.dtype == torch.bfloat16
        assert close(y, wanted, 0.06)
        found = gradients(y, x, scale, values)
        assert all(t.dtype == torch.float32 for t in found)
        assert all(close(a, w, 0.06) for a, w in zip(found, right, strict=True)), route


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("case", [LINEAR[9], CONV[10], CONV[11]], ids=str)
def test_nothing_of_the_size_of_the_weight_is_saved(case, transform):
    for dtype in (torch.float32, torch.float64):
        for route in sorted(case.routes(transform, dtype)):
            x, scale, values, index = inputs(case, transform, dtype)
            given = {t.data_ptr() for t in (x, scale, values, index) if t is not None}
            saved: list[Tensor] = []
            keep = saved.append
            with torch.autograd.graph.saved_tensors_hooks(lambda t, keep=keep: keep(t) or t, lambda t: t):
                case.product(x, scale, values, index, transform, route)
            assert {t.data_ptr() for t in saved} <= given


@pytest.mark.parametrize("case", [LINEAR[0], CONV[10], CONV[11]], ids=str)
def test_an_index_that_moves_is_followed(case):
    x, scale, values, index = inputs(case, "dct")
    elsewhere = inputs(case, "dct", seed=1)[3], inputs(case, "dct", seed=1, order="shuffled")[3], index.flip(0)
    for route in sorted(case.routes("dct")):
        for place in (index.clone(), *elsewhere):
            moving = index.clone()
            case.product(x, scale, values, moving, "dct", route)
            moving.copy_(place)
            actual = gradients(case.product(x, scale, values, moving, "dct", route), x, scale, values)
            wanted = gradients(expected(case, x, scale, values, place, "dct"), x, scale, values)
            assert all(close(a, w, 1e-12) for a, w in zip(actual, wanted, strict=True)), route


def test_what_inference_mode_made_trains():
    for case in (Case((33, 29), (4, 29)), Case((9, 7, 3, 3), (2, 7, 5, 5), 7, ((1, 1), (1, 1), (1, 1), 1))):
        for route in sorted(case.routes("dct")):
            x, scale, values, index = inputs(case, "dct")
            with torch.inference_mode():
                case.product(x, scale, values, index, "dct", route)
            assert all(
                g is not None for g in gradients(case.product(x, scale, values, index, "dct", route), x, scale, values)
            )
            y = case.product(x, scale, values, index, "dct", route)
            torch.autograd.grad(y.sum(), x, create_graph=True)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("case", SOME, ids=str)
def test_problems_larger_than_a_piece_are_cut(case, transform, monkeypatch):
    for module, name, size in [
        (sparse_matrix, "TABLE_SIZE", 90),
        (sparse_conv, "TABLE_SIZE", 90),
        (sparse_conv, "MAX_ROW", 30),
        (fft, "CHUNK", 50),
    ]:
        monkeypatch.setattr(module, name, size)
    for route in sorted(case.routes(transform)):
        check(case, transform, route)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("case", [case for case in SOME if case.geometry], ids=str)
def test_large_maps_go_through_a_loop(case, transform, monkeypatch):
    monkeypatch.setattr(sparse_conv, "LARGE", 0)
    for route in sorted(case.routes(transform)):
        check(case, transform, route)


@pytest.mark.parametrize("dtype", rest_slow([torch.float64, torch.float32], [torch.float64]), ids=str)
@pytest.mark.parametrize("transform", rest_slow(["dct", "hadamard"], ["dct"]))
@pytest.mark.parametrize("case", SOME, ids=str)
def test_every_route_takes_signs_of_the_channels(case, transform, dtype):
    *tensors, index = inputs(case, transform, dtype, order="shuffled")
    signs = torch.from_numpy(Key(0).signs(case.shape[1])).to(dtype)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    plain = dense(case, transform, exact[1], torch.zeros_like(exact[2]), index)
    w = plain * signs.double().reshape(-1, *(1 for _ in case.shape[2:]))
    w = (w.flatten().index_add(0, index, exact[2])).reshape(case.shape)
    wanted = F.linear(exact[0], w) if not case.geometry else convolution(case, exact[0], w)
    right = gradients(wanted, *exact)
    for route in sorted(case.routes(transform, dtype)):
        y = case.product(*tensors, index, transform, route, signs)
        assert close(y, wanted, TOLERANCE[dtype]), route
        assert all(close(a, b, TOLERANCE[dtype]) for a, b in zip(gradients(y, *tensors), right, strict=True)), route

    def product(x, scale, values):
        return case.product(x, scale, values, index, transform, "remat", signs)

    if dtype == torch.float64:  # through the reference
        assert torch.autograd.gradcheck(product, tensors, check_forward_ad=True, fast_mode=True)
        assert torch.autograd.gradgradcheck(product, tensors, fast_mode=True)


@pytest.mark.parametrize("case", [LINEAR[1], CONV2D[20]], ids=str)
def test_auto_is_the_route_that_the_router_chooses(case, monkeypatch):
    x, scale, values, index = inputs(case, "dct")
    asked, by_name = [], {route.name: route for route in ROUTES}

    def choose(problem, routes, constants):
        asked.append((problem, {route.name for route in routes}))
        return by_name["fft"]

    monkeypatch.setattr(selection.router, "choose", choose)
    selection._select.cache_clear()
    y = case.product(x, scale, values, index, "dct", "auto")
    actual = gradients(y, x, scale, values)
    selection._select.cache_clear()
    wanted = gradients(case.product(x, scale, values, index, "dct", "fft"), x, scale, values)
    assert all(torch.equal(a, w) for a, w in zip(actual, wanted, strict=True))
    assert len(asked) == 1  # for both passes
    assert all(routes == case.routes("dct") for _, routes in asked)
    rows = case.x if case.geometry else (int(np.prod(case.x[:-1])), case.x[-1])
    assert all((problem.shape, problem.k, problem.x_shape) == (case.shape, case.k, rows) for problem, _ in asked)


def test_meta_and_fake_tensors_have_the_shape_of_the_product():
    from torch._subclasses.fake_tensor import FakeTensorMode

    for case in (LINEAR[1], CONV[3], CONV2D[20]):
        x, scale, values, index = inputs(case, "dct", grad=False)
        y = case.product(x, scale, values, index, "dct")
        meta = case.product(x.to("meta"), scale.to("meta"), values.to("meta"), index, "dct")
        with FakeTensorMode() as mode:
            fake = case.product(*(mode.from_tensor(t) for t in (x, scale, values, index)), "dct")
        assert meta.is_meta
        assert meta.shape == fake.shape == y.shape


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("case", [LINEAR[1], CONV[0], CONV[3], CONV[5], CONV[11], CONV2D[20]], ids=str)
def test_an_impossible_route_is_an_error_that_names_the_possible_ones(case, transform):
    tensors = inputs(case, transform)
    possible = case.routes(transform)
    for route in {*EVERY, "fast"} - possible:
        with pytest.raises(ValueError, match=f"route must be one of auto, .*, got '{route}'") as error:
            case.product(*tensors, transform, route)
        assert all(name in str(error.value) for name in possible)


def test_an_x_of_another_shape_is_an_error():
    x, *rest = inputs(LINEAR[0], "dct")
    with pytest.raises(ValueError, match=r"x must have a last axis of 8, got shape \(3, 7\)"):
        LINEAR[0].product(x[:, 1:], *rest, "dct")
    x, *rest = inputs(CONV[0], "dct")
    for wrong in (x[:, 1:], x[0]):
        with pytest.raises(ValueError, match="x must have 3 axes and 4 channels, got shape"):
            CONV[0].product(wrong, *rest, "dct")
