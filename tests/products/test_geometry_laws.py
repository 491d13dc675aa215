"""Every route of a convolution is the dense one in any geometry, outputs that meet no pixel included."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from subspace.products import ROUTES, Geometry, Weight
from subspace.products.problem import Problem
from subspace.products.product import multiply
from subspace.products.routes import DENSE
from tests.support.cases import rest_slow
from tests.support.strategies import numbers, seeds

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 8e-2, torch.float16: 1e-2}


@st.composite
def axes(draw):
    """(size, kernel, stride, padding, dilation) of one axis, of which at least one output is left."""
    kernel, dilation, stride = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    padding = draw(st.integers(0, 4))
    least = max(1, dilation * (kernel - 1) + 1 - 2 * padding)
    return draw(st.integers(least, least + 5)), kernel, stride, padding, dilation


@st.composite
def convolutions(draw):
    """(spatial sizes, geometry)."""
    found = draw(st.lists(axes(), min_size=1, max_size=3))
    if draw(st.booleans()):  # one tap, which has routes of its own
        found = [(size, 1, stride, padding, dilation) for size, _, stride, padding, dilation in found]
    size, *geometry = zip(*found, strict=True)
    return size, Geometry(*geometry, draw(st.sampled_from([1, 1, 2])))


def agree(size, geometry, transform, dtype, seed, last=False):
    """That all routes give the dense product in float64, with all gradients."""
    shape = (6, 4, *geometry.kernel)
    index = torch.arange(0, torch.Size(shape).numel(), 3)
    given = numbers(seed, 2, 4 * geometry.groups, *size), torch.full((1,), 0.7), numbers(seed + 1, len(index))
    if last and len(size) == 2:
        given = given[0].contiguous(memory_format=torch.channels_last), *given[1:]

    def gradients(dtype, route=DENSE):
        x, scale, values = (t.to(dtype).requires_grad_() for t in given)
        w = Weight(None if transform == "zero" else scale, values, index, shape, transform)
        if not route.supports(Problem.of(x, w, geometry)):
            return wanted
        dirt = [torch.full((1 << 12,), torch.nan, dtype=dtype) for _ in range(4)]  # for who forgets to write
        del dirt
        y = multiply(x, w, geometry, route.name)
        gy = numbers(seed + 2, *y.shape).to(dtype)
        return y, *torch.autograd.grad(y, (x, values) if transform == "zero" else (x, scale, values), gy)

    wanted = gradients(torch.float64)
    for route in ROUTES:
        for got, right in zip(gradients(dtype, route), wanted, strict=True):
            size = 1 + float(right.detach().abs().max())
            torch.testing.assert_close(got.double(), right, rtol=0, atol=TOLERANCE[dtype] * size)


@pytest.mark.parametrize("transform", ["dct", "hadamard", "zero"])
@pytest.mark.parametrize("dtype", rest_slow(TOLERANCE, [torch.float32]), ids=str)
@settings(max_examples=5 * settings().max_examples)
@given(convolutions(), seeds, st.booleans())
def test_in_any_geometry(transform, dtype, convolution, seed, last):
    agree(*convolution, transform, dtype, seed, last and dtype in (torch.float64, torch.float32))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("size, padding", [((1, 1), (1, 1)), ((1, 5), (1, 0)), ((1,), (2,)), ((1, 1, 1), (1, 0, 1))])
def test_where_no_output_meets_a_pixel(size, padding, dtype):
    for stride in (3, 4):
        one = tuple(1 for _ in size)
        geometry = Geometry(one, tuple(stride if p else 1 for p in padding), padding, one, 1)
        for last in (False, True):
            agree(size, geometry, "dct", dtype, 0, last and dtype in (torch.float64, torch.float32))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 1, 1), (6, 4, 3, 3), (6, 4, 3)], ids=str)
def test_however_x_lies_in_memory(shape, dtype):
    geometry = Geometry(shape[2:], *((1,) * len(shape[2:]) for _ in range(3)))
    sizes = {2: (3, 4), 3: (3, 4, 5), 4: (3, 4, 5, 5)}[len(shape)]
    whole = numbers(0, *(2 * n for n in sizes)).to(dtype)
    w = Weight(torch.ones(1, dtype=dtype), torch.ones(2, dtype=dtype), torch.tensor([0, 7]), shape, "dct")
    views = [
        whole[tuple(slice(0, n) for n in sizes)],
        whole[tuple(slice(None, None, 2) for _ in sizes)],
        whole[tuple(slice(0, n) for n in sizes)].transpose(-1, 0).contiguous().transpose(-1, 0),
        whole[:1][tuple(slice(0, n) for n in sizes)].expand(sizes),
    ]
    for x in views:
        for route in ROUTES:
            if route.supports(Problem.of(x.contiguous(), w, geometry)):
                got, wanted = (multiply(t, w, geometry, route.name) for t in (x, x.contiguous()))
                torch.testing.assert_close(got, wanted, rtol=0, atol=TOLERANCE[dtype])
