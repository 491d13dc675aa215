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

from subspace import kernels
from subspace.kernels import native

TRANSFORMS = ["dct", "hadamard", "zero"]
EVERY = ["auto", "dense", "remat", "fft", "native", "bottleneck", "channels_last"]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 6e-2, torch.float16: 8e-3}
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

    def product(self, x, scale, values, index, transform, route="auto"):
        kernel = kernels.conv if self.geometry else kernels.linear
        return kernel(x, scale, values, index, self.shape, transform, *self.geometry, route)

    def routes(self, transform, dtype=torch.float64, last=False):
        """The routes that must be possible."""
        compiled = {"native"} if native.available() and dtype != torch.float64 else set()
        if not self.geometry:
            return {"dense", "remat", "fft"} | compiled
        stride, *_, groups = self.geometry
        one = set(self.shape[2:]) == {1}
        found = {"dense", "remat"} | ({"channels_last"} if len(self.x) > 3 else set())
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
    convolve = [F.conv1d, F.conv2d, F.conv3d][len(case.shape) - 3]
    return convolve(x.double(), w, None, *case.geometry)


def inputs(case: Case, transform: str, dtype=torch.float64, last=False, seed=0, grad=True):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(case.x, generator=generator, dtype=torch.float64).to(dtype)
    if last:
        x = x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)
    scale = None if transform == "zero" else torch.tensor([0.7], dtype=dtype)
    values = torch.randn(case.k, generator=generator, dtype=torch.float64).to(dtype)
    index = torch.randperm(int(np.prod(case.shape)), generator=generator)[: case.k].sort().values
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


def check(case: Case, transform: str, route: str, dtype=torch.float64, last=False) -> None:
    x, scale, values, index = inputs(case, transform, dtype, last)
    y = case.product(x, scale, values, index, transform, route)
    exact = [None if t is None else t.detach().double().requires_grad_() for t in (x, scale, values)]
    wanted = expected(case, *exact, index, transform)
    assert y.dtype == dtype
    assert close(y, wanted, TOLERANCE[dtype]), (route, "y")
    for tensor, actual, right in zip("x scale values".split(), gradients(y, x, scale, values), gradients(wanted, *exact)):
        if right is not None:
            assert actual.dtype == dtype
            assert close(actual, right, TOLERANCE[dtype]), (route, tensor)
    if last:
        form = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
        assert y.is_contiguous(memory_format=form)
        assert gradients(y := case.product(x, scale, values, index, transform, route), x)[0].is_contiguous(memory_format=form)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("case", [*LINEAR, *CONV, *CONV2D], ids=str)
def test_every_route_is_the_dense_product(case, transform):
    for route in sorted(case.routes(transform)):
        check(case, transform, route)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("case", SOME, ids=str)
def test_every_route_is_the_dense_product_in_every_dtype(case, transform, dtype):
    for route in sorted(case.routes(transform, dtype)):
        check(case, transform, route, dtype)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("case", [case for case in [*CONV, *CONV2D[::5]] if len(case.x) > 3], ids=str)
def test_every_route_keeps_channels_last(case, transform):
    for route in sorted(case.routes(transform, torch.float32, last=True)):
        check(case, transform, route, torch.float32, last=max(case.x[1:2]) > 1 and case.x[0] > 0)
