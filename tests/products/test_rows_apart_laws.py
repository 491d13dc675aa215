"""Rows of a batch stay apart: row i of a product, and of its gradient to x, does not depend on row j.

Some rows are multiplied by a power of two, from 2^-26 to 2^26, and the others made hostile: huge, tiny, zero, infinite
or NaN. The first come out times their power, to the rounding of their own size. Rows are those of a linear layer, the
pixels of a convolution of one tap, and the images of any other. (What rows share, values and scale, sums over all.)
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from subspace import dct, fwht, idct
from subspace.products import ROUTES, Geometry, Weight
from subspace.products.native import load
from subspace.products.problem import Problem
from subspace.products.product import multiply
from tests.support.cases import rest_slow
from tests.support.strategies import each_embedding, each_offset, embedding, numbers, offset, seeds

TOLERANCE = {torch.float64: 1e-13, torch.float32: 3e-6, torch.bfloat16: 3e-2, torch.float16: 4e-3}
POWERS = [2.0**e for e in (0, 0, 0, 1, -3, 10, -10, 26, -26)]
HOSTILE = [1e8, -1e8, 1e-8, 0.0, np.inf, -np.inf, np.nan]
SETS = load.SETS.get(torch.backends.cpu.get_cpu_capability(), ("baseline",))
# (shape of w, shape of x, shape of rows as it spreads over x and y), and the geometry of a convolution
PRODUCTS = [
    ((64, 48), (20, 48), (20, 1)),
    ((30, 77), (3, 7, 77), (3, 7, 1)),
    ((1, 9), (40, 9), (40, 1)),
    ((243, 16), (2, 16), (2, 1)),
    ((24, 40, 1, 1), (3, 40, 7, 7), (3, 1, 7, 7), (1, 1), (0, 0), (1, 1), 1),
    ((16, 8, 1, 1), (5, 8, 4, 4), (5, 1, 4, 4), (1, 1), (0, 0), (1, 1), 1),
    ((8, 6, 3, 3), (9, 6, 5, 5), (9, 1, 1, 1), (1, 1), (1, 1), (1, 1), 1),
    ((8, 3, 3, 2), (9, 6, 6, 5), (9, 1, 1, 1), (2, 1), (1, 0), (1, 2), 2),
    ((8, 3, 3, 3), (4, 3, 32, 32), (4, 1, 1, 1), (1, 1), (1, 1), (1, 1), 1),
    ((6, 4, 3), (5, 4, 9), (5, 1, 1), (1,), (1,), (1,), 1),
]


class Rows:
    """A factor for every row, and which of them are left alone: `sound`."""

    def __init__(self, shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> None:
        g = np.random.default_rng(seed % 2**32)
        powers = [1.0] if dtype == torch.float16 else POWERS  # half precision has no room for others
        sound = g.random(shape) < 0.6
        self.factor = torch.from_numpy(np.where(sound, g.choice(powers, shape), g.choice(HOSTILE, shape)))
        self.sound, self.tolerance = torch.from_numpy(sound), TOLERANCE[dtype]

    def spoil(self, t: Tensor) -> Tensor:
        return (t.double() * self.factor).to(t.dtype)

    def check(self, got: Tensor, wanted: Tensor) -> None:
        """That the sound rows are the wanted ones times their power."""
        axes = [axis for axis, n in enumerate(self.factor.shape) if n == 1] or [-1]
        got, wanted = got.detach().double() / self.factor, wanted.detach().double()
        error = torch.linalg.vector_norm(got - wanted, dim=axes, keepdim=True)
        size = torch.linalg.vector_norm(wanted, dim=axes, keepdim=True)
        assert (error <= self.tolerance * size)[self.sound].all(), (error / size)[self.sound].max()


def alone(shape, size, transform, dtype, geometry, seed, density=0.05):
    """A product as a function of x, by every route."""
    g = np.random.default_rng(seed % 2**32)
    index = torch.from_numpy(np.sort(g.permutation(n := int(np.prod(shape)))[: round(density * n)]))
    values = torch.from_numpy(g.standard_normal(len(index))).to(dtype)
    w = Weight(None if transform == "zero" else torch.full((1,), 0.7, dtype=dtype), values, index, shape, transform)
    geometry = Geometry(shape[2:], *geometry)
    for route in ROUTES:
        if route.supports(Problem.of(torch.empty(size, dtype=dtype), w, geometry)):
            yield lambda x, route=route: multiply(x, w, geometry, route.name)


EACH = list(itertools.product(PRODUCTS, ["dct", "hadamard", "zero"], TOLERANCE))
SOME = EACH[::5]  # each product, and each transform in each dtype


def stay_apart(product, x: Tensor, rows: Rows, dense: bool = False) -> None:
    """dense: every output depends on all of its row, so that it is not finite where the row is not."""
    x = x.clone().requires_grad_()
    y = product(x)
    gy = torch.from_numpy(np.random.default_rng(0).standard_normal(y.shape)).to(y.dtype)
    (gx,) = torch.autograd.grad(y, x, gy)
    bad = rows.spoil(x.detach()).requires_grad_()
    y_bad = product(bad)
    rows.check(y_bad, y)
    if dense:
        assert not y_bad[(~rows.factor.isfinite()).expand_as(y_bad)].isfinite().any()
    (of_bad_gy,) = torch.autograd.grad(product(x), x, rows.spoil(gy))
    rows.check(of_bad_gy, gx)
    if dense:
        assert not of_bad_gy[(~rows.factor.isfinite()).expand_as(gx)].isfinite().any()
    (of_bad_x,) = torch.autograd.grad(y_bad, bad, gy)  # which depends on x only by what rows share
    torch.testing.assert_close(of_bad_x, gx, rtol=rows.tolerance, atol=rows.tolerance * float(gx.abs().max()))


@pytest.mark.parametrize("case, transform, dtype", rest_slow(EACH, SOME), ids=str)
@settings(max_examples=3)
@given(seeds)
def test_by_every_route_of_every_product(case, transform, dtype, seed):
    shape, size, each, *geometry = case
    x = numbers(seed, *size).to(dtype)
    for product in alone(shape, size, transform, dtype, geometry, seed):
        stay_apart(product, x, Rows(each, seed, dtype), dense=transform != "zero" and len(size) < 4)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("threads", rest_slow([1, 3], [3]))
@settings(max_examples=4)
@given(seeds)
def test_by_every_instruction_set_and_number_of_threads(name, threads, seed):
    if load._load(name)[0] is None:
        pytest.skip(load._load(name)[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "_loaded", lambda: load._load(name))
        patch.setattr(torch, "get_num_threads", lambda: threads)
        for shape, size, each, *geometry in PRODUCTS[:7]:
            for product in alone(shape, size, "dct", torch.float32, geometry, seed):
                stay_apart(product, numbers(seed, *size).float(), Rows(each, seed, torch.float32))


@pytest.mark.parametrize("where", [0, 3, -1])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, 1e-38, 1e-44])
def test_one_number_spoils_its_own_row_and_no_other(value, where):
    x = numbers(0, 20, 48).float()
    bad = x.clone()
    bad[4, where] = value
    others = torch.arange(20) != 4
    for product in alone((64, 48), (20, 48), "dct", torch.float32, (), 0):
        torch.testing.assert_close(product(bad)[others], product(x)[others], rtol=0, atol=1e-5)
        torch.testing.assert_close(product(bad)[4].isnan(), product(bad[4:5])[0].isnan())


def test_rows_at_the_ends_of_the_range_are_rounded_to_their_own_size():
    x = numbers(0, 8, 64).float()
    size = torch.tensor([1e-42, 1e-37, 1e-30, 1e-12, 1.0, 1e15, 1e30, 1e35])
    bad = x * size[:, None]
    (exact, *_) = alone((64, 64), (8, 64), "dct", torch.float64, (), 0, density=0)
    wanted = exact(bad.double())
    for product in alone((64, 64), (8, 64), "dct", torch.float32, (), 0, density=0):
        error = (product(bad) - wanted).norm(dim=1) / wanted.norm(dim=1)
        assert (error[1:] < 1e-6).all(), error


@each_offset
@given(seeds)
def test_of_every_offset(case, seed):
    d, x = offset(case, (12, 30), seed), numbers(seed, 9, 30)
    stay_apart(lambda x: d.linear(x) + 0 * x[:, :12], x, Rows((9, 1), seed, torch.float64))  # 0 depends on no x


@each_embedding
@given(seeds)
def test_of_every_embedding(case, seed):
    U = embedding(case, (12, 30), 0.3, seed)
    theta = numbers(seed + 1, U.dim)
    stay_apart(lambda x: U.linear(theta, x), numbers(seed, 9, 30), Rows((9, 1), seed, torch.float64))


@pytest.mark.parametrize("transform", [dct, idct, fwht])
@given(seeds)
def test_of_every_transform(transform, seed):
    for n, dtype in ((64, torch.float64), (32, torch.float32)):
        stay_apart(transform, numbers(seed, 9, n).to(dtype), Rows((9, 1), seed, dtype), dense=True)
