"""The kernels for the sparse part of a convolution on GPUs, run as in test_triton, beside torch's own in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from subspace.products.geometry import Geometry
from subspace.products.parts import sparse
from subspace.products.routes.bottleneck import Bottleneck
from subspace.products.triton import DTYPES, kernels
from subspace.products.weight import Needs, Weight
from tests.support.devices import TRITON_DEVICE, interpreted

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(TRITON_DEVICE is None, reason="no Triton, or neither a GPU nor its interpreter"),
]

ERRORS = {torch.float32: 1e-6, torch.float16: 8e-4, torch.bfloat16: 6e-3}  # of all results together, relative
SIZES = (5, 4)


@pytest.fixture(autouse=True)
def _interpreted():
    with interpreted():
        yield


@pytest.fixture
def _everywhere(monkeypatch):
    """The kernels taken on the device where they are tested."""
    monkeypatch.setattr(sparse, "can_take", lambda device, dtype: dtype in DTYPES)


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    """Numbers, of images in channels_last."""
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    return drawn.to(TRITON_DEVICE, dtype, memory_format=layout)


def weight(shape: tuple[int, ...], k: int, index: Tensor | None = None) -> Weight:
    if index is None:
        index = torch.randperm(torch.Size(shape).numel(), generator=torch.Generator().manual_seed(0))[:k]
    return Weight(None, draw(len(index), seed=5), index.to(TRITON_DEVICE), shape, "zero")


def dense(w: Weight) -> Tensor:
    return (
        torch.zeros(w.shape, dtype=torch.float64)
        .view(-1)
        .index_add(0, w.index.cpu(), w.values.cpu().double())
        .view(w.shape)
    )


def is_close(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> bool:
    assert found.shape == wanted.shape
    return float((found.cpu().double() - wanted).norm()) <= ERRORS[dtype] * float(wanted.norm())


def check(
    w: Weight, geometry: Geometry, sizes: tuple[int, int] = SIZES, n: int = 2, dtype: torch.dtype = torch.float32
):
    """y and gx, which hold something before, and gvalues."""
    x = draw(n, w.shape[1] * geometry.groups, *sizes, dtype=dtype)
    gy = draw(n, w.shape[0], *geometry.sizes(sizes), dtype=dtype, seed=2)
    y, gx = draw(*gy.shape, dtype=dtype, seed=3), draw(*x.shape, dtype=dtype, seed=4)
    s, (x64, gy64, y64, gx64) = dense(w), (t.cpu().double() for t in (x, gy, y, gx))
    gs = geometry.gradients(gy64, x64, s, True, True)
    kernels("sparse_conv").forward(x, w, geometry, y)
    gvalues = kernels("sparse_conv").backward(gy, x, w, geometry, gx, True)
    assert is_close(y, y64 + geometry.multiply(x64, s), dtype)
    assert is_close(gx, gx64 + gs[0], dtype)
    assert gvalues.dtype == torch.float32
    assert is_close(gvalues, gs[1].flatten()[w.index.cpu()], torch.float32)


STRIDES, PADDINGS, DILATIONS = [(1, 1), (1, 2)], [(0, 0), (1, 1), (2, 3)], [(1, 1), (2, 1)]
KERNELS = [(1, 1), (3, 3), (2, 3)]


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_geometry_is_torchs_convolution(kernel, groups):
    for stride, padding, dilation in itertools.product(STRIDES, PADDINGS, DILATIONS):
        check(weight((6, 2, *kernel), 6 * kernel[0] * kernel[1]), Geometry(kernel, stride, padding, dilation, groups))


@pytest.mark.parametrize("sizes", [(1, 1), (1, 9), (8, 1), (9, 7)])
@pytest.mark.parametrize("stride", [(2, 1), (4, 5)])
def test_any_sizes_of_images_and_a_stride_beyond_the_kernel(sizes, stride):
    check(weight((5, 3, 3, 3), 60), Geometry((3, 3), stride, (1, 1), (1, 1), 1), sizes, n=3)
    check(weight((5, 3, 3, 2), 60), Geometry((3, 2), stride, (3, 4), (3, 4), 1), sizes, n=1)


@pytest.mark.parametrize("k", [1, 2, 700])
@pytest.mark.parametrize("shape", [(70, 33, 3, 3), (1, 100, 2, 3), (40, 1, 3, 3)])
def test_any_number_of_channels_and_nonzeros(shape, k):
    check(weight(shape, min(k, torch.Size(shape).numel())), Geometry(shape[2:], (1, 1), (1, 1), (1, 1), 1))


@pytest.mark.parametrize("stride", [(1, 1), (2, 2)])
def test_an_output_and_an_input_full_of_nonzeros(stride):
    places = torch.arange(40 * 20 * 9).view(40, 20, 9)
    index = torch.cat([places[7].flatten(), places[:, 3].flatten()]).unique()
    check(weight((40, 20, 3, 3), 0, index), Geometry((3, 3), stride, (1, 1), (1, 1), 1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stride", [(1, 1), (2, 2)])
def test_every_type(dtype, stride):
    check(weight((24, 16, 3, 3), 600), Geometry((3, 3), stride, (1, 1), (1, 1), 1), (9, 10), dtype=dtype)


GEOMETRY = Geometry((3, 3), (2, 1), (1, 2), (1, 1), 2)


def test_only_what_is_needed():
    w, x, gy = weight((8, 4, 3, 3), 60), draw(2, 8, *SIZES), draw(2, 8, *GEOMETRY.sizes(SIZES), seed=2)
    both, alone = torch.zeros_like(x), torch.zeros_like(x)
    gvalues = kernels("sparse_conv").backward(gy, x, w, GEOMETRY, both, True)
    assert kernels("sparse_conv").backward(gy, x, w, GEOMETRY, alone, False) is None
    assert torch.equal(alone, both)
    torch.testing.assert_close(kernels("sparse_conv").backward(gy, x, w, GEOMETRY, None, True), gvalues)


def test_deterministic_sums_are_the_same():
    w, x, gy = weight((8, 4, 3, 3), 60), draw(15, 8, *SIZES), draw(15, 8, *GEOMETRY.sizes(SIZES), seed=2)
    atomic = kernels("sparse_conv").backward(gy, x, w, GEOMETRY, None, True)
    torch.use_deterministic_algorithms(True)
    try:
        ordered, again = (kernels("sparse_conv").backward(gy, x, w, GEOMETRY, None, True) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(ordered, again)
    torch.testing.assert_close(ordered, atomic, rtol=1e-5, atol=1e-4)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the interpreter
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("geometry", [GEOMETRY, Geometry((3, 3), (1, 1), (0, 0), (1, 1), 2)])
def test_images_stay_apart(geometry, bad):
    w, x, gy = weight((8, 4, 3, 3), 288), draw(4, 8, *SIZES), draw(4, 8, *geometry.sizes(SIZES), seed=2)

    def results() -> tuple[Tensor, Tensor]:
        y, gx = torch.zeros_like(gy), torch.zeros_like(x)
        kernels("sparse_conv").forward(x, w, geometry, y)
        kernels("sparse_conv").backward(gy, x, w, geometry, gx, True)
        return y, gx

    before = results()
    x[2], gy[2] = bad, bad
    others = torch.arange(4, device=TRITON_DEVICE) != 2
    for clean, spoilt in zip(before, results(), strict=True):
        assert torch.equal(spoilt[others], clean[others])
        assert not spoilt[2].isfinite().any()


@pytest.mark.usefixtures("_everywhere")
def test_a_route_takes_them_in_channels_last_alone(monkeypatch):
    w = weight((8, 4, 3, 3), 60)._replace(scale=torch.tensor([0.7], device=TRITON_DEVICE), transform="dct")
    x, gy = draw(2, 8, *SIZES), draw(2, 8, *GEOMETRY.sizes(SIZES), seed=2)
    calls = []
    monkeypatch.setattr(sparse, "kernels", lambda name: calls.append(name) or kernels(name))
    by_kernels = (
        Bottleneck().forward(x, w, GEOMETRY),
        *Bottleneck().backward(gy, x, w, GEOMETRY, Needs(True, True, True)),
    )
    assert calls == ["sparse_conv", "sparse_conv"]
    x, gy = x.contiguous(), gy.contiguous()
    by_torch = Bottleneck().forward(x, w, GEOMETRY), *Bottleneck().backward(gy, x, w, GEOMETRY, Needs(True, True, True))
    assert len(calls) == 2
    for found, wanted in zip(by_kernels, by_torch, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("_everywhere")
def test_rows_are_theirs_too(monkeypatch):
    w, geometry, calls = weight((9, 20), 50), Geometry(), []
    monkeypatch.setattr(sparse, "kernels", lambda name: calls.append(name) or kernels(name))
    x, gy, y, gx = draw(5, 20), draw(5, 9, seed=2), draw(5, 9, seed=3), draw(5, 20, seed=4)
    wanted_y, wanted_gx = y + x @ dense(w).to(x).T, gx + gy @ dense(w).to(x)
    sparse.forward(x, w, geometry, y)
    gvalues = sparse.backward(gy, x, w, geometry, gx, True)
    assert calls == ["sparse", "sparse"]
    for found, wanted in ((y, wanted_y), (gx, wanted_gx), (gvalues, (gy.T @ x).flatten()[w.index])):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    sparse.forward(x.T.contiguous().T, w, geometry, y)
    assert len(calls) == 2


@pytest.mark.usefixtures("_everywhere")
def test_no_nonzeros_at_all():
    w, x = weight((8, 4, 3, 3), 0), draw(2, 8, *SIZES)
    y, gx = torch.zeros(2, 8, *GEOMETRY.sizes(SIZES), device=TRITON_DEVICE), torch.zeros_like(x)
    sparse.forward(x, w, GEOMETRY, y)
    assert len(sparse.backward(y, x, w, GEOMETRY, gx, True)) == 0
    assert not y.any()
    assert not gx.any()
