"""The gradient to a weight in blocks of rows is autograd's, for layers of every geometry."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from subspace.methods.weight_gradient import blocks
from subspace.products.layers import as_product
from tests.support.strategies import numbers

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
GEOMETRY = [
    (axes, stride, padding, dilation, groups, mode)
    for axes, stride, padding, dilation, groups, mode in itertools.product(
        (1, 2, 3), (1, 2), (0, 1, "same"), (1, 2), (1, 2, 4), ("zeros", "circular", "replicate")
    )
    if not (padding == "same" and stride > 1)
]


def conv(axes, stride, padding, dilation, groups, mode):
    kernel = (3, 2, 1)[:axes]
    return CONVS[axes](4, 8, kernel, stride, padding, dilation, groups, padding_mode=mode, dtype=torch.float64)


@pytest.mark.parametrize("geometry", GEOMETRY, ids=str)
def test_a_convolution_in_blocks_of_channels(geometry):
    layer = conv(*geometry)
    samples = [numbers(0, 2, 4, *(7, 6, 5)[: geometry[0]]), numbers(1, 4, *(7, 8, 5)[: geometry[0]])]  # one unbatched
    outputs = [layer(x) for x in samples]
    slopes = [numbers(2 + i, *y.shape) for i, y in enumerate(outputs)]
    (expected,) = torch.autograd.grad(outputs, layer.weight, slopes)
    calls = [as_product(layer, x) for x in samples]
    for (x, where), y in zip(calls, outputs, strict=True):
        zeros = [0] * len(where.stride)
        sizes = where.stride, where.padding, where.dilation, False, zeros, where.groups
        torch.testing.assert_close(torch.convolution(x, layer.weight, layer.bias, *sizes).reshape(y.shape), y)
    reads = [(c.x, gy.reshape(len(c.x), 8, *gy.shape[-geometry[0] :])) for c, gy in zip(calls, slopes, strict=True)]
    check(reads, expected, calls[0].geometry)


@pytest.mark.parametrize("shape", [(9,), (3, 9), (2, 3, 9), (0, 9)])
def test_a_linear_layer_in_blocks_of_rows(shape):
    layer = nn.Linear(9, 7, dtype=torch.float64)
    x = numbers(0, *shape)
    y = layer(x)
    gy = numbers(1, *y.shape)
    (expected,) = torch.autograd.grad(y, layer.weight, gy)
    check([(as_product(layer, x).x, gy.reshape(-1, 7))], expected, as_product(layer, x).geometry)


def check(reads, expected, where):
    row = math.prod(expected.shape[1:])
    for entries in (1, 2 * row, 3 * row + 1, 5 * row, 1 << 20):
        parts = list(blocks(reads, expected.shape, where, entries=entries))
        assert [first for first, _ in parts] == [0, *itertools.accumulate(len(part) for _, part in parts)][:-1]
        assert max(part.numel() for _, part in parts) <= max(entries, row)
        torch.testing.assert_close(torch.cat([part for _, part in parts]), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_summed_in_float32(dtype):
    x, gy = numbers(0, 64, 9).to(dtype), numbers(1, 64, 7).to(dtype)
    (_, gradient), *_ = blocks([(x, gy)], (7, 9))
    assert gradient.dtype == torch.float32
    torch.testing.assert_close(gradient.double(), gy.double().T @ x.double(), rtol=1e-5, atol=1e-5)


def test_a_gradient_of_nothing_is_refused():
    with pytest.raises(ValueError, match="reads must have at least one pair, got none"):
        next(blocks([], (7, 9)))
