"""The kernels that write w and read its gradient on GPUs, run as in test_triton, beside a dense w from scipy."""

from __future__ import annotations

import pytest
import torch

from subspace.products.geometry import LINEAR, Geometry
from subspace.products.parts import matrix
from subspace.products.routes.dense import Dense
from subspace.products.triton import DTYPES
from subspace.products.weight import Needs
from tests.products.test_triton import ERRORS, dense, draw, error, weight
from tests.support.devices import TRITON_DEVICE, interpreted

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(TRITON_DEVICE is None, reason="no Triton, or neither a GPU nor its interpreter"),
]

ONE, THREE = (1, 1), (3, 3)
PROBLEMS = [
    ((1, 1), (3, 1), LINEAR),
    ((40, 70), (7, 70), LINEAR),
    ((5, 2000), (3, 2000), LINEAR),
    ((70, 24), (5, 24), LINEAR),
    ((6, 24, 3), (2, 24, 9), Geometry((3,), (1,), (1,), (1,), 1)),
    ((12, 10, 3, 3), (2, 10, 6, 5), Geometry(THREE, (2, 1), ONE, ONE, 1)),
    ((6, 1, 3, 3), (2, 6, 6, 5), Geometry(THREE, ONE, ONE, ONE, 6)),
    ((8, 2, 3, 3, 3), (1, 4, 4, 3, 5), Geometry((3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1), 2)),
]


@pytest.fixture(autouse=True)
def _everywhere(monkeypatch):
    monkeypatch.setattr(matrix, "can_take", lambda device, dtype: dtype in DTYPES)
    with interpreted():
        yield


@pytest.mark.parametrize("name", ["dct", "hadamard", "zero"])
@pytest.mark.parametrize("number", range(len(PROBLEMS)))
def test_w_and_the_gradients_read_off_its_own_are_those_of_float64(number, name):
    shape, x_shape, geometry = PROBLEMS[number]
    w = weight(shape, min(50, torch.Size(shape).numel()), name)
    full, t = dense_of(w, shape)
    for dtype, last in ((torch.float32, False), (torch.bfloat16, len(shape) > 3)):
        x = in_format(draw(*x_shape, dtype=dtype), last)
        found = matrix.build(w, x.to(TRITON_DEVICE))
        assert found.dtype == dtype
        assert error(found, full) < ERRORS[dtype]
        y = geometry.multiply(x.double(), full)
        gy = in_format(draw(*y.shape, dtype=dtype, seed=2), last)
        gx, gw = geometry.gradients(gy.double(), x.double(), full, True, True)
        got = Dense().backward(
            gy.to(TRITON_DEVICE), x.to(TRITON_DEVICE), w, geometry, Needs(True, name != "zero", True)
        )
        assert error(got.x, gx) < 2 * ERRORS[dtype]
        assert error(got.values, gw.flatten()[w.index.cpu()]) < 2 * ERRORS[dtype]
        if name != "zero":
            wanted = (gw * t).sum().view(1)
            assert error(got.scale, wanted, float(gw.norm() * t.norm())) < ERRORS[dtype]


def dense_of(w, shape):
    """(w, T) in the shape of w: T's columns count the channels of a tap first, an index those of w."""
    plain, t = dense(w._replace(values=w.values[:0], index=w.index[:0]))
    t, s = (each.view(shape[0], -1, shape[1]).mT.reshape(shape) for each in (t, plain))
    return s.flatten().index_add(0, w.index.cpu(), w.values.cpu().double()).view(shape), t


def in_format(x, last):
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.ndim) if last else None
    return x.contiguous(memory_format=layout) if layout else x
