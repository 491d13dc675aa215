"""The compiled convolution: all instruction sets against dense float64, its sparse part alone, accuracy and memory."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import scipy.fft
import torch
import torch.nn.functional as F
from torch import Tensor

from subspace.products import ROUTES, Geometry, Weight
from subspace.products.native import conv, load
from subspace.products.problem import Problem
from subspace.products.weight import Needs
from tests.support.cases import rest_slow

ROOT = Path(__file__).parent
CAPABLE = load.SETS.get(torch.backends.cpu.get_cpu_capability(), ("baseline",))
PLAIN = Geometry((3, 3), (1, 1), (1, 1), (1, 1))
ALL = Needs(True, True, True)
needs_kernels = pytest.mark.skipif(not load.is_available(), reason=load.status())

# (images, C, H, W), C_out, kernel, padding, dilation
LAYERS = [
    ((5, 3, 7, 9), 5, (3, 3), (1, 1), (1, 1)),
    ((9, 17, 4, 4), 64, (3, 3), (1, 1), (1, 1)),
    ((1, 64, 8, 8), 17, (5, 5), (2, 2), (1, 1)),
    ((2, 5, 11, 17), 3, (2, 2), (3, 0), (1, 2)),
    ((5, 1, 1, 33), 40, (1, 3), (0, 3), (1, 2)),
    ((1, 3, 31, 6), 1, (7, 1), (3, 2), (2, 1)),
    ((17, 2, 1, 1), 2, (3, 3), (1, 1), (1, 1)),
    ((3, 16, 32, 32), 16, (3, 3), (0, 3), (2, 3)),
    ((2, 2, 5, 6), 90, (3, 4), (2, 2), (1, 1)),
    ((0, 3, 7, 9), 5, (3, 3), (1, 1), (1, 1)),
]

# (images, C, H, W), C_out, kernel, stride, padding, dilation, groups
GEOMETRIES = [
    ((5, 6, 9, 7), 4, (3, 3), (2, 2), (1, 1), (1, 1), 2),
    ((9, 8, 8, 8), 8, (3, 2), (3, 2), (2, 1), (2, 3), 8),
    ((2, 12, 33, 17), 24, (1, 1), (2, 3), (0, 0), (1, 1), 4),
    ((17, 3, 4, 5), 5, (3, 3), (1, 1), (1, 2), (1, 1), 1),
    ((2, 4, 6, 32), 6, (2, 2), (2, 2), (2, 0), (1, 1), 2),
    ((2, 3, 5, 32), 4, (1, 3), (1, 1), (1, 0), (1, 1), 1),
    ((0, 3, 4, 5), 5, (3, 3), (1, 1), (1, 2), (1, 1), 1),
]


def dct(n_out: int, channels: int, kh: int, kw: int) -> Tensor:
    q = max(n_out, channels * kh * kw)
    matrix = scipy.fft.dct(np.eye(q), norm="ortho", axis=0)[:n_out, : channels * kh * kw]
    return torch.from_numpy(matrix.reshape(n_out, kh, kw, channels).transpose(0, 3, 1, 2).copy())


def entries(shape: tuple[int, ...], density: float) -> tuple[Tensor, Tensor]:
    size = int(np.prod(shape))
    index = torch.randperm(size)[: round(density * size)].sort()[0]
    return torch.randn(len(index)), index


def exact(x, values, index, shape, scale, transform, gy, *geometry):
    """y, gx, gscale and gvalues of the dense convolution in float64."""
    x, values, scale = (t.double().requires_grad_() for t in (x, values, scale))
    w = torch.zeros(shape, dtype=torch.float64).flatten().index_add(0, index, values).view(shape)
    if transform == "dct":
        w = w + scale * dct(*shape)
    y = F.conv2d(x, w, None, *geometry)
    return y.detach(), *torch.autograd.grad(
        y, (x, scale, values), gy.double(), materialize_grads=True, allow_unused=True
    )


def close(ours: Tensor, reference: Tensor, size: float) -> None:
    torch.testing.assert_close(ours.double(), reference, rtol=0, atol=3e-6 * max(size, 1e-6))


def largest(t: Tensor) -> float:
    return float(t.abs().amax()) if t.numel() else 0.0


@needs_kernels
@pytest.mark.parametrize("name", CAPABLE)
@pytest.mark.parametrize("threads", rest_slow([1, 3], [3]))
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_every_instruction_set_is_the_dense_convolution(layer, threads, name, monkeypatch):
    if load._load(name)[0] is None:
        pytest.skip(load._load(name)[1])
    monkeypatch.setattr(load, "_loaded", lambda: load._load(name))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    torch.manual_seed(0)
    size, n_out, kernel, padding, dilation = layer
    shape, x, scale = (n_out, size[1], *kernel), torch.randn(size), torch.randn(1)
    for transform, density in itertools.product(("dct", "zero"), (0, 0.03, 1)):
        values, index = entries(shape, density)
        w = Weight(None if transform == "zero" else scale, values, index, shape, transform)
        geometry = Geometry(kernel, (1, 1), padding, dilation)
        y = conv.forward(x, w, geometry)
        gy = torch.randn_like(y)
        gradients = conv.backward(gy, x, w, geometry, ALL)
        wanted = exact(x, values, index, shape, scale, transform, gy, 1, padding, dilation)
        close(y, wanted[0], largest(wanted[0]))
        close(gradients[0], wanted[1], largest(wanted[1]))
        if transform == "dct":  # a sum of cancelling terms: its error is that of the terms
            close(gradients[1], wanted[2], float(gy.norm() * wanted[0].norm() / abs(scale)))
        close(gradients[2], wanted[3], float(y[:, 0].numel() ** 0.5))


@needs_kernels
@pytest.mark.parametrize("transform", ["dct", "zero"])
def test_gradients_do_not_depend_on_which_others_are_needed(transform):
    shape, x, scale = (10, 5, 3, 3), torch.randn(9, 5, 6, 6), torch.randn(1)
    values, index = entries(shape, 0.1)
    w = Weight(None if transform == "zero" else scale, values, index, shape, transform)
    what = torch.randn(9, 10, 6, 6), x, w, PLAIN
    everything = conv.backward(*what, ALL)
    for needs in itertools.product((False, True), repeat=3):
        for need, one, same in zip(needs, conv.backward(*what, Needs(*needs)), everything, strict=True):
            if need and same is not None:
                assert torch.equal(one, same)
            else:
                assert one is None


@needs_kernels
def test_sums_do_not_depend_on_which_thread_is_first(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    shape = (10, 5, 3, 3)
    w = Weight(torch.randn(1), *entries(shape, 0.1), shape, "dct")
    what = torch.randn(50, 10, 6, 6), torch.randn(50, 5, 6, 6), w, PLAIN, ALL
    first = conv.backward(*what)
    for _ in range(20):
        assert all(map(torch.equal, conv.backward(*what), first))


@needs_kernels
@pytest.mark.parametrize("layer", GEOMETRIES, ids=str)
@pytest.mark.parametrize("density", [0, 0.1, 1])
def test_the_sparse_part_is_added_in_any_geometry(layer, density):
    torch.manual_seed(0)
    size, n_out, kernel, *geometry = layer
    shape, x, scale = (n_out, size[1] // geometry[-1], *kernel), torch.randn(size), torch.ones(1)
    values, index = entries(shape, density)
    zero = torch.zeros(shape, dtype=torch.float64)
    gy = torch.randn(F.conv2d(x.double(), zero, None, *geometry).shape)
    y, gx, _, gvalues = exact(x, values, index, shape, scale, "zero", gy, *geometry)
    before, gbefore = torch.randn(y.shape), torch.randn(x.shape)
    after, gafter, once, twice = before.clone(), gbefore.clone(), torch.zeros(len(values)), torch.ones(len(values))
    w, geometry = Weight(None, values, index, shape, "zero"), Geometry(kernel, *geometry)
    conv.add_sparse(x, w, geometry, after)
    close(after, y + before, largest(y) + 3)
    conv.add_sparse_gradients(gy, x, w, geometry, gafter, once)
    close(once, gvalues, y[:, 0].numel() ** 0.5)
    conv.add_sparse_gradients(gy, x, w, geometry, None, twice)
    close(twice - 1, gvalues, y[:, 0].numel() ** 0.5)
    close(gafter, gx + gbefore, largest(gx) + 3)


@needs_kernels
@pytest.mark.parametrize("layer", [((4, 16, 16, 16), 16, 3), ((4, 64, 9, 9), 64, 5), ((2, 256, 8, 8), 256, 3)], ids=str)
def test_it_is_no_less_accurate_than_the_dense_convolution(layer):
    torch.manual_seed(0)
    size, n_out, kernel = layer
    shape, x, scale, padding = (n_out, size[1], kernel, kernel), torch.randn(size), torch.ones(1), (kernel // 2,) * 2
    values, index = entries(shape, 0.001)
    gy = torch.randn(size[0], n_out, *size[2:])
    wanted = exact(x, values, index, shape, scale, "dct", gy, 1, padding)
    w = dct(*shape).flatten().index_add(0, index, values.double()).view(shape).float().requires_grad_()
    dense_x = x.clone().requires_grad_()
    dense_y = F.conv2d(dense_x, w, None, 1, padding)
    dense_gx, dense_gw = torch.autograd.grad(dense_y, (dense_x, w), gy)
    ours, geometry = Weight(scale, values, index, shape, "dct"), Geometry((kernel, kernel), (1, 1), padding, (1, 1))
    y = conv.forward(x, ours, geometry)
    gx, _, gvalues = conv.backward(gy, x, ours, geometry, ALL)
    pairs = (y, dense_y), (gx, dense_gx), (gvalues, dense_gw.flatten()[index])
    for (ours, dense), reference in zip(pairs, (wanted[0], wanted[1], wanted[3]), strict=True):
        assert (ours - reference).norm() <= (dense - reference).norm()


@needs_kernels
def test_what_it_takes():
    (route,) = (route for route in ROUTES if route.name == "native")
    simple = Problem((6, 4, 3, 3), 9, "dct", (2, 4, 5, 5), torch.float32, "cpu", geometry=PLAIN)
    assert route.supports(simple)
    assert route.supports(simple._replace(transform="zero"))
    assert not route.supports(simple._replace(transform="hadamard"))
    assert not route.supports(simple._replace(dtype=torch.float64))
    assert not route.supports(simple._replace(dtype=torch.bfloat16))
    assert not route.supports(simple._replace(device="cuda"))
    assert not route.supports(simple._replace(channels_last=True))
    assert not route.supports(simple._replace(geometry=PLAIN._replace(stride=(1, 2))))
    assert not route.supports(simple._replace(shape=(6, 2, 3, 3), geometry=PLAIN._replace(groups=2)))
    one = PLAIN._replace(kernel=(1, 1), groups=2)
    assert not route.supports(simple._replace(shape=(6, 2, 1, 1), geometry=one))


@pytest.mark.compile
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.parametrize("wide", [[], ["-march=x86-64-v3"]], ids=["baseline", "avx2"])
def test_its_memory_is_in_bounds_and_written_before_it_is_read(wide, tmp_path):
    if wide and "avx2" not in CAPABLE:
        pytest.skip("no AVX2")
    flags = "-std=c++17 -O1 -fsanitize=address,undefined -fno-sanitize-recover=all -Wall -Wextra -Werror -Wno-psabi"
    command = ["g++", *flags.split(), *wide, "-pthread", ROOT / "native_conv_driver.cpp", "-o", tmp_path / "driver"]
    subprocess.run(command, check=True)
    fill = {"ASAN_OPTIONS": "max_malloc_fill_size=1000000000:malloc_fill_byte=255"}  # new memory is full of NaN
    done = subprocess.run([tmp_path / "driver"], capture_output=True, text=True, env={**os.environ, **fill})
    assert done.returncode == 0, done.stdout + done.stderr
