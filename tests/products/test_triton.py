"""The kernels for GPUs, run by Triton's interpreter on the CPU where there is no GPU, beside a dense w from scipy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.fft
import scipy.linalg
import torch
from torch import Tensor

from subspace.products.geometry import LINEAR, Geometry
from subspace.products.problem import Problem
from subspace.products.routes.triton import Triton
from subspace.products.triton.lengths import LENGTHS, split
from subspace.products.triton.settings import settings
from subspace.products.triton.tables import tables
from subspace.products.weight import Needs, Weight
from tests.support.devices import TRITON_DEVICE, interpreted

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(TRITON_DEVICE is None, reason="no Triton, or neither a GPU nor its interpreter"),
]

ERRORS = {torch.float32: 1e-6, torch.float16: 8e-4, torch.bfloat16: 6e-3}  # of all results together, relative
ALL = Needs(True, True, True)


@pytest.fixture(autouse=True)
def _interpreted():
    with interpreted():
        yield


def transform(n_out: int, n_in: int, name: str) -> Tensor:
    """The first rows of the matrix, of which only these are made."""
    larger = max(n_out, n_in)
    if name == "dct":
        rows = scipy.fft.idct(np.eye(n_out, larger), axis=1, norm="ortho")
    else:
        half = 1 << ((larger - 1).bit_length() // 2)
        left, right = (scipy.linalg.hadamard(n) for n in ((1 << (larger - 1).bit_length()) // half, half))
        rows = np.stack([np.kron(left[i // half], right[i % half]) for i in range(n_out)]) / larger**0.5
    return torch.from_numpy(rows[:, :n_in].astype(np.float64))


def weight(shape: tuple[int, ...], k: int, name: str, signed: bool = False, seed: int = 0) -> Weight:
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(int(np.prod(shape)), generator=generator)[:k]
    signs = (torch.randint(0, 2, (shape[1],), generator=generator) * 2 - 1).float() if signed else None
    scale = None if name == "zero" else torch.tensor([0.7])
    parts = scale, torch.randn(k, generator=generator), index
    moved = (None if part is None else part.to(TRITON_DEVICE) for part in parts)
    return Weight(*moved, shape, name, None if signs is None else signs.to(TRITON_DEVICE))


def dense(w: Weight) -> tuple[Tensor, Tensor]:
    """(w, T) in float64 on the CPU, as matrices."""
    n_out, n_in = w.fans
    t = torch.zeros(n_out, n_in, dtype=torch.float64) if w.scale is None else transform(n_out, n_in, w.transform)
    if w.signs is not None:
        t = t * w.signs.cpu().double()
    s = torch.zeros(n_out * n_in, dtype=torch.float64)
    s[w.index.cpu()] = w.values.cpu().double()
    return (0.0 if w.scale is None else w.scale.cpu().double()) * t + s.view(n_out, n_in), t


def draw(*shape: int, dtype: torch.dtype, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def error(found: Tensor, wanted: Tensor, scale: float | None = None) -> float:
    found = found.cpu().double()
    assert found.shape == wanted.shape
    return float((found - wanted).norm() / (scale or wanted.norm()))


def check(shape: tuple[int, int], rows: int, k: int, name: str, dtype: torch.dtype, signed: bool = False) -> None:
    w = weight(shape, k, name, signed)
    x, gy = draw(rows, shape[1], dtype=dtype), draw(rows, shape[0], dtype=dtype, seed=2)
    y = Triton().forward(x.to(TRITON_DEVICE), w, LINEAR)
    found = Triton().backward(gy.to(TRITON_DEVICE), x.to(TRITON_DEVICE), w, LINEAR, ALL)
    full, t = dense(w)
    x, gy = x.double(), gy.double()
    assert error(y, x @ full.T) < ERRORS[dtype]
    assert error(found.x, gy @ full) < ERRORS[dtype]
    assert error(found.values, (gy.T @ x).flatten()[w.index.cpu()]) < 1e-6 if k else len(found.values) == 0
    if w.scale is None:
        assert found.scale is None
    else:  # a sum that may come to next to nothing
        product = gy @ t
        assert error(found.scale, (product * x).sum().view(1), float(product.norm() * x.norm())) < ERRORS[dtype]


@pytest.mark.parametrize("name", ["dct", "hadamard"])
@pytest.mark.parametrize("q", [*LENGTHS[:6], *(pytest.param(q, marks=pytest.mark.slow) for q in LENGTHS[6:])])
def test_every_length_is_a_dense_product(q, name):
    dtype = torch.float16 if q > 4096 else torch.float32
    check((min(q, 300), q), 3, 50, name, dtype)


@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize("name", ["dct", "hadamard", "zero"])
def test_every_type_with_and_without_signs(name, dtype):
    check((256, 256), 21, 700, name, dtype)
    if name != "zero":
        check((1024, 700), 5, 3000, name, dtype, signed=True)


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 130])
@pytest.mark.parametrize("shape", [(256, 256), (256, 100), (31, 512)])
def test_any_number_of_rows_and_either_side_shorter(shape, rows):
    check(shape, rows, 200, "dct", torch.float32, signed=True)


def test_no_nonzeros_at_all():
    check((256, 256), 9, 0, "dct", torch.float32)
    w, x = weight((256, 100), 0, "zero"), torch.ones(3, 100, device=TRITON_DEVICE)
    assert not Triton().forward(x, w, LINEAR).any()
    assert not Triton().backward(torch.ones(3, 256, device=TRITON_DEVICE), x, w, LINEAR, ALL).x.any()


@pytest.mark.parametrize("name", ["dct", "zero"])
def test_an_output_and_an_input_full_of_nonzeros(name):
    w = weight((256, 256), 1, name)
    index = torch.cat([torch.arange(256) + 256 * 7, torch.arange(8, 256) * 256 + 3]).to(TRITON_DEVICE)
    w = w._replace(index=index, values=torch.linspace(-1, 1, len(index)).to(TRITON_DEVICE))
    x = draw(9, 256, dtype=torch.float32)
    assert error(Triton().forward(x.to(TRITON_DEVICE), w, LINEAR), x.double() @ dense(w)[0].T) < 1e-6
    found = Triton().backward(x.to(TRITON_DEVICE), x.to(TRITON_DEVICE), w, LINEAR, ALL)
    assert error(found.x, x.double() @ dense(w)[0]) < 1e-6
    assert error(found.values, (x.double().T @ x.double()).flatten()[index.cpu()]) < 1e-6


@pytest.mark.parametrize("needs", [needs for needs in itertools.product([False, True], repeat=3) if any(needs)])
def test_only_what_is_needed(needs):
    w, x = weight((256, 256), 100, "dct", signed=True), draw(5, 256, dtype=torch.float32).to(TRITON_DEVICE)
    every = Triton().backward(x, x, w, LINEAR, ALL)
    found = Triton().backward(x, x, w, LINEAR, Needs(*needs))
    for need, some, one in zip(needs, found, every, strict=True):
        assert (some is not None) == need
        assert some is None or torch.allclose(some, one, rtol=1e-5, atol=1e-5)


def test_deterministic_sums_are_the_same():
    w, x = weight((256, 256), 500, "dct"), draw(200, 256, dtype=torch.float32).to(TRITON_DEVICE)
    atomic = Triton().backward(x, x, w, LINEAR, ALL)
    torch.use_deterministic_algorithms(True)
    try:
        ordered, again = (Triton().backward(x, x, w, LINEAR, ALL) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(ordered.values, again.values)
    torch.testing.assert_close(ordered.values, atomic.values, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rows_stay_apart(bad):
    w, x = weight((256, 256), 300, "dct", signed=True), draw(70, 256, dtype=torch.float32).to(TRITON_DEVICE)
    y, gx = Triton().forward(x, w, LINEAR), Triton().backward(x, x, w, LINEAR, ALL).x
    x[3] = bad
    others = torch.arange(70, device=TRITON_DEVICE) != 3
    assert torch.equal(Triton().forward(x, w, LINEAR)[others], y[others])
    assert torch.equal(Triton().backward(x, x, w, LINEAR, ALL).x[others], gx[others])


def test_a_convolution_of_one_tap_is_a_product_of_its_pixels():
    w, geometry = weight((256, 64, 1, 1), 300, "dct"), Geometry((1, 1), (2, 1), (1, 0), (1, 1), 1)
    x = draw(2, 64, 5, 3, dtype=torch.float32).contiguous(memory_format=torch.channels_last)
    wanted = geometry.multiply(x.double(), dense(w)[0].view(w.shape))
    assert error(Triton().forward(x.to(TRITON_DEVICE), w, geometry), wanted) < 1e-6


def test_tables_of_half_types_are_those_of_float64_rounded():
    for q in (256, 2048):
        exact, half = (tables("dct", q, dtype, torch.device("cpu")) for dtype in (torch.float64, torch.bfloat16))
        assert torch.equal(exact.columns.bfloat16(), half.columns)
        q1, q2 = split(q)
        assert exact.columns.shape == (q1, q1)
        assert exact.rows.shape == (2, q2, q2)


def test_settings_divide_what_they_are_for():
    for q, name, itemsize, back in itertools.product(LENGTHS, ["dct", "hadamard"], [2, 4], [False, True]):
        q1, q2 = split(q)
        s = settings(q, name, itemsize, back)
        assert (q1 if name == "hadamard" else q1 // 2) % s.part == 0
        assert q2 % s.part2 == 0


def test_it_is_a_route_for_gpus_alone():
    problem = Problem((256, 256), 10, "dct", (8, 256), torch.bfloat16, "cuda")
    assert Triton().supports(problem)
    assert Triton().supports(problem._replace(shape=(300, 200), transform="hadamard"))
    assert Triton().supports(problem._replace(shape=(300, 200), transform="zero"))
    for other in ({"device": "cpu"}, {"dtype": torch.float64}, {"shape": (300, 200)}, {"shape": (128, 128)}):
        assert not Triton().supports(problem._replace(**other))
    assert not Triton().supports(problem._replace(shape=(32768, 8), dtype=torch.float32))
    assert len(Triton().counts(problem)) == 5
