"""Every route of a convolution is the dense one in any geometry, outputs that meet no pixel included."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from subspace.products import ROUTES, Geometry, Weight
from subspace.products.problem import Problem
from subspace.products.product import multiply
from tests.support.strategies import numbers, seeds

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}


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
    x = numbers(seed, 2, 4 * geometry.groups, *size).to(dtype)
    if last and x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    shape = (6, 4, *geometry.kernel)
    index = torch.arange(0, torch.Size(shape).numel(), 3)
    scale = None if transform == "zero" else torch.full((1,), 0.7, dtype=dtype).requires_grad_()
    values = numbers(seed + 1, len(index)).to(dtype).requires_grad_()
    x.requires_grad_()
    w = Weight(scale, values, index, shape, transform)
    wanted = None
    for route in ROUTES:  # the dense one first
        if route.supports(Problem.of(x, w, geometry)):
            y = multiply(x, w, geometry, route.name)
            gy = numbers(seed + 2, *y.shape).to(dtype)
            found = y, *torch.autograd.grad(y, [t for t in (x, scale, values) if t is not None], gy)
            wanted = wanted or found
            for got, right in zip(found, wanted, strict=True):
                torch.testing.assert_close(
                    got, right, rtol=0, atol=TOLERANCE[dtype] * (1 + float(right.detach().abs().max()))
                )


@pytest.mark.parametrize("transform", ["dct", "hadamard", "zero"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@settings(max_examples=40)
@given(convolutions(), seeds, st.booleans())
def test_in_any_geometry(transform, dtype, convolution, seed, last):
    agree(*convolution, transform, dtype, seed, last)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("size, padding", [((1, 1), (1, 1)), ((1, 5), (1, 0)), ((1,), (2,)), ((1, 1, 1), (1, 0, 1))])
def test_where_no_output_meets_a_pixel(size, padding, dtype):
    for stride in (3, 4):
        one = tuple(1 for _ in size)
        geometry = Geometry(one, tuple(stride if p else 1 for p in padding), padding, one, 1)
        for last in (False, True):
            agree(size, geometry, "dct", dtype, 0, last)
