"""What must hold on a GPU: the same as on a CPU, and what only a GPU has: no waiting for it, captured graphs."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import subspace
from subspace import Key, methods, recipes
from subspace.embeddings import Sparse
from subspace.products import ROUTES, Geometry, Weight, conv, linear
from subspace.products.geometry import LINEAR
from subspace.products.problem import Problem
from subspace.products.routes.triton import Triton
from subspace.products.triton.lengths import LENGTHS, is_length
from subspace.products.weight import Needs
from tests.support.cases import EMBEDDINGS, OFFSETS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.fixture(autouse=True)
def _in_full_precision():
    """cuDNN's convolutions of float32 are of 10 bits unless told otherwise."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = before


SHAPES = [(5, 8), (12, 3), (6, 2, 3, 3)]
TOLERANCE = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}  # relative, of all results together


def error(found, wanted, scale=None) -> float:
    found, wanted = found.detach().cpu().double(), wanted.detach().cpu().double()
    return float((found - wanted).norm() / (scale or wanted.norm().clamp_min(1e-12)))


@pytest.mark.parametrize("case", OFFSETS, ids=lambda case: case.name)
def test_an_offset_is_the_same_on_both_devices(case):
    for shape in SHAPES:
        d = case.make(torch.linspace(-1, 1, torch.Size(shape).numel()).reshape(shape), Key(3))
        on_cpu = d()
        torch.testing.assert_close(copy.deepcopy(d).cuda()().cpu(), on_cpu)


@pytest.mark.parametrize("case", EMBEDDINGS, ids=lambda case: case.name)
def test_an_embedding_is_the_same_on_both_devices(case):
    for shape in SHAPES:
        U = case.make(torch.zeros(shape), 5, Key(3))
        theta = torch.linspace(-1, 1, U.dim)
        on_cpu, there = U(theta), copy.deepcopy(U).cuda()
        torch.testing.assert_close(there(theta.cuda()).cpu(), on_cpu, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(there.adjoint(on_cpu.cuda()).cpu(), U.adjoint(on_cpu), rtol=1e-5, atol=1e-5)


def product_weight(shape, k, transform, signed=False) -> Weight:
    index = torch.from_numpy(Key(1).distinct(int(np.prod(shape)), k))
    signs = torch.from_numpy(Key(2).signs(shape[1])).float() if signed else None
    return Weight(None if transform == "zero" else torch.tensor([0.7]), torch.randn(k), index, shape, transform, signs)


def on_gpu(w: Weight) -> Weight:
    return w._replace(**{name: t.cuda() for name, t in w._asdict().items() if isinstance(t, torch.Tensor)})


GEOMETRIES = [
    ((64, 32, 3, 3), (4, 32, 9, 7), Geometry((3, 3), (1, 1), (1, 1), (1, 1), 1)),
    ((64, 32, 3, 3), (4, 32, 9, 7), Geometry((3, 3), (2, 1), (0, 1), (1, 2), 1)),
    ((64, 8, 3, 3), (4, 32, 9, 7), Geometry((3, 3), (2, 2), (1, 1), (1, 1), 4)),
    ((512, 64, 1, 1), (3, 64, 5, 7), Geometry((1, 1), (2, 2), (0, 0), (1, 1), 1)),
    ((16, 24, 3), (3, 24, 20), Geometry((3,), (2,), (1,), (1,), 1)),
]
PRODUCTS = [
    *(((m, n), (rows, n), LINEAR) for m, n, rows in ((300, 200, 33), (512, 512, 100), (700, 1024, 65))),
    *GEOMETRIES,
]


@pytest.mark.parametrize("dtype", [torch.float64, *TOLERANCE], ids=str)
@pytest.mark.parametrize("transform", ["dct", "hadamard", "zero"])
@pytest.mark.parametrize("number", range(len(PRODUCTS)))
def test_every_route_equals_the_plain_product_in_float64_on_the_cpu(number, transform, dtype):
    torch.manual_seed(0)
    shape, x_shape, geometry = PRODUCTS[number]
    for last, signed in itertools.product([False, True] if len(x_shape) == 4 else [False], [False, transform == "dct"]):
        layout = torch.channels_last if last else torch.contiguous_format
        w, x = product_weight(shape, 60, transform, signed), torch.randn(x_shape).to(dtype)
        exact = w._replace(
            **{n: t.double() for n, t in w._asdict().items() if n in ("scale", "values", "signs") and t is not None}
        )
        multiply = linear if not geometry.kernel else lambda x, w, route, g=geometry: conv(x, w, g, route)
        wanted = gradients(multiply, x.double(), exact, "dense")
        there = x.cuda().contiguous(memory_format=layout)
        for route in ROUTES:
            if route.supports(Problem.of(there, on_gpu(w), geometry)):
                found = gradients(multiply, there, on_gpu(w), route.name)
                for name, a, b in zip(("y", "x", "values", "scale"), found, wanted, strict=False):
                    size = float(wanted[1].norm() * x.double().norm()) if name == "scale" else None
                    assert error(a, b, size) < TOLERANCE.get(dtype, 1e-6), (route.name, name, last, signed)


def gradients(multiply, x, w, route):
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    values = w.values.clone().requires_grad_()
    scale = None if w.scale is None else w.scale.clone().requires_grad_()
    y = multiply(x, w._replace(values=values, scale=scale), route)
    gy = torch.linspace(-1, 2, y.numel(), dtype=torch.float64).sin().reshape(y.shape).to(y)
    return [y, *torch.autograd.grad(y, [t for t in (x, values, scale) if t is not None], gy)]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("transform", ["dct", "hadamard"])
@pytest.mark.parametrize("q", LENGTHS)
def test_every_length_on_more_rows_than_programs(q, transform, dtype):
    if not is_length(q, dtype):
        pytest.skip("too long for this type")
    torch.manual_seed(0)
    w = product_weight((q, q), 500, transform, signed=q % 3 == 1)
    x = torch.randn(1111 if q < 8192 else 300, q).to(dtype)
    there = on_gpu(w)
    y = Triton().forward(x.cuda(), there, LINEAR)
    found = Triton().backward(x.cuda(), x.cuda(), there, LINEAR, Needs(True, True, True))
    turned, exact = x.double().cuda(), on_gpu(w._replace(scale=torch.tensor([0.7]).double(), values=w.values.double()))
    if w.signs is not None:
        exact = exact._replace(signs=exact.signs.double())
    wanted = gradients(linear, turned, exact, "fft")
    assert error(y, wanted[0]) < TOLERANCE[dtype]
    again = Triton().forward(x.cuda(), there, LINEAR)
    assert torch.equal(y, again)
    xs = turned.requires_grad_()
    gx, gvalues = torch.autograd.grad(
        linear(xs, exact._replace(values=exact.values.requires_grad_()), "fft"), [xs, exact.values], xs.detach()
    )
    assert error(found.x, gx) < TOLERANCE[dtype]
    assert error(found.values, gvalues) < 1e-5


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(8, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 256, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(1024, 256), nn.ReLU(), nn.Linear(256, 10),
    )  # fmt: skip


def batch():
    return torch.randn(16, 8, 8, 8, generator=torch.Generator().manual_seed(1)).cuda()


@pytest.mark.parametrize("recipe", [recipes.dctps, recipes.random_pruning], ids=lambda recipe: recipe.__name__)
def test_a_structured_model_on_the_gpu_is_the_plain_one_on_the_cpu(recipe):
    plain = recipe(net(), dim=2000, seed=0)
    model = subspace.structured(copy.deepcopy(plain).cuda())
    for x in (batch(), batch().contiguous(memory_format=torch.channels_last)):
        y, wanted = model(x), plain(x.cpu())
        assert error(y, wanted) < 1e-4
        found = torch.autograd.grad(y.square().sum(), list(model.parameters()))
        for a, b in zip(found, torch.autograd.grad(wanted.square().sum(), list(plain.parameters())), strict=True):
            assert error(a, b) < 1e-3


def test_autocast_trains_and_stays_near_float32():
    model = subspace.structured(recipes.dctps(net(), dim=2000, seed=0).cuda())
    with torch.autocast("cuda", torch.bfloat16):
        y = model(batch().contiguous(memory_format=torch.channels_last))
    assert error(y, model(batch())) < 0.05
    y.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_same_key_gives_the_same_support_and_start_on_both_devices():
    on_cpu, there = recipes.dctps(net(), dim=500, seed=3), recipes.dctps(net().cuda(), dim=500, seed=3)
    for (name, a), (_, b) in zip(on_cpu.state_dict().items(), there.state_dict().items(), strict=True):
        if name.endswith("index"):
            assert torch.equal(a, b.cpu())
    assert error(there(batch()), on_cpu(batch().cpu())) < 1e-4


def test_a_checkpoint_of_one_device_is_loaded_on_the_other(tmp_path):
    x = batch()
    for first, second in (("cpu", "cuda"), ("cuda", "cpu")):
        model = recipes.dctps(net().to(first), dim=500, seed=3)
        subspace.save(model, tmp_path / f"{first}.safetensors")
        other = subspace.load(net().to(second), tmp_path / f"{first}.safetensors")
        assert error(other(x.to(second)), model(x.to(first))) < 1e-4


@pytest.mark.parametrize("mover", [methods.SET, methods.RigL])
def test_a_support_moves_on_the_gpu(mover):
    model = subspace.structured(recipes.dctps(net(), dim=2000, seed=0).cuda())
    optimizer, x = torch.optim.Adam(model.parameters(), lr=1e-3), batch()
    moves = {"key": Key(0)} if mover is methods.SET else {}
    moving = mover(model, optimizer, t_end=100, delta_t=2, **moves)
    before = [part.index.clone() for part in model.modules() if isinstance(part, Sparse)]
    for _ in range(5):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        moving.step(lambda net: net(x).square().mean())
    after = [part.index for part in model.modules() if isinstance(part, Sparse)]
    assert not all(map(torch.equal, before, after))
    plain = subspace.unstructured(copy.deepcopy(model))
    assert error(model(x), plain(x)) < 1e-4


def trainer(model, x):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, capturable=True)

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    return step, optimizer


@pytest.mark.parametrize("route", ["auto", "dense", "triton"])
def test_a_training_step_never_waits_for_the_gpu(route):
    model = nn.Sequential(nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 256))
    model = subspace.structured(recipes.dctps(model, dim=3000, seed=0).cuda(), route)
    step, _ = trainer(model, torch.randn(64, 1024, device="cuda"))
    for _ in range(2):
        step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("route", ["dense", "triton"])
def test_a_captured_step_sees_a_support_that_has_moved(route):
    model = nn.Sequential(nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 256))
    model = subspace.structured(recipes.dctps(model, dim=3000, seed=0).cuda(), route)
    x = torch.randn(64, 1024, device="cuda")
    step, optimizer = trainer(model, x)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    optimizer.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        y = model(x)
    moving = methods.SET(model, optimizer, t_end=100, delta_t=1, fraction=0.9, key=Key(0))
    for _ in range(2):
        moving.step()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.05)
        graph.replay()
        assert error(y, subspace.unstructured(copy.deepcopy(model))(x)) < 1e-4


@pytest.mark.parametrize("route", ["dense", "triton"])
def test_a_compiled_layer_has_no_break_and_is_captured(route):
    model = nn.Sequential(nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 256))
    model = subspace.structured(recipes.dctps(model, dim=3000, seed=0).cuda(), route)
    x = torch.randn(64, 1024, device="cuda")
    compiled = torch.compile(model, fullgraph=True, mode="reduce-overhead")
    wanted = model(x)
    for _ in range(3):
        model.zero_grad()  # or torch would add to gradients that the next launch of their graph overwrites
        torch.compiler.cudagraph_mark_step_begin()
        y = compiled(x)
        loss = y.square().mean()
        loss.backward()
        assert error(y, wanted) < 1e-4
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(x).square().mean().backward()
    for a, b in zip(found, model.parameters(), strict=True):
        assert error(a, b.grad) < 1e-4


def test_deterministic_training_gives_the_same_bits():
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        losses = []
        for _ in range(2):
            model = nn.Sequential(nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 256))
            model = subspace.structured(recipes.dctps(model, dim=3000, seed=0).cuda(), "triton")
            torch.manual_seed(0)
            step, _ = trainer(model, torch.randn(300, 1024, device="cuda"))
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.normal_(std=0.05)
            losses.append([step().item() for _ in range(5)])
    finally:
        torch.use_deterministic_algorithms(False)
    assert losses[0] == losses[1]


def test_no_number_of_float64_is_made_on_the_gpu():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for t in out if isinstance(out, tuple | list) else [out]:
                if isinstance(t, torch.Tensor) and t.is_cuda:
                    assert t.dtype not in (torch.float64, torch.complex128), func
            return out

    model, x = recipes.dctps(net(), dim=2000, seed=0).cuda(), batch()
    with Watch():
        F.mse_loss(model(x), torch.zeros(16, 10, device="cuda")).backward()
        F.mse_loss(subspace.structured(model)(x), torch.zeros(16, 10, device="cuda")).backward()


def test_constants_of_a_captured_graph_outlive_any_number_of_others():
    layer = subspace.structured(recipes.dctps(nn.Linear(64, 48), dim=100, seed=0).cuda(), "dense")
    x = torch.randn(8, 64, device="cuda")
    wanted = layer(x).detach()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        y = layer(x)
    for width in range(65, 265):
        other = subspace.structured(recipes.dctps(nn.Linear(width, 48), dim=100, seed=0).cuda(), "dense")
        other(torch.randn(8, width, device="cuda"))
    graph.replay()
    assert error(y, wanted) < 1e-6
