"""Transforms against scipy, and against their own adjoints."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.fft
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

from subspace import dct, fwht, idct
from tests.support.cases import rest_slow
from tests.support.strategies import numbers, seeds

TRANSFORMS = {
    dct: lambda x: scipy.fft.dct(x, norm="ortho"),
    idct: lambda x: scipy.fft.idct(x, norm="ortho"),
    fwht: lambda x: x @ scipy.linalg.hadamard(x.shape[-1]) / x.shape[-1] ** 0.5,
}
each = pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda transform: transform.__name__)


def length(transform, size):
    return size if transform is not fwht else 1 << (size % 9)


@each
@given(seed=seeds, size=st.integers(1, 200), rows=st.integers(0, 3))
def test_equals_scipy(transform, seed, size, rows):
    x = numbers(seed, rows, 2, length(transform, size))
    np.testing.assert_allclose(transform(x), TRANSFORMS[transform](x.numpy()), atol=1e-12)


@each
@given(seed=seeds, size=st.integers(1, 40))
def test_is_orthonormal_and_its_backward_is_its_adjoint(transform, seed, size):
    x = numbers(seed, 2, length(transform, size)).requires_grad_()
    y = numbers(seed + 1, *x.shape)
    (gradient,) = torch.autograd.grad((transform(x) * y).sum(), x)
    inverse = {dct: idct, idct: dct, fwht: fwht}[transform]
    torch.testing.assert_close(gradient, inverse(y))
    torch.testing.assert_close(inverse(transform(x)), x)
    torch.testing.assert_close(transform(x).norm(), x.norm())


@each
@pytest.mark.parametrize("n", rest_slow([1, 2, 5, 8, 30], [1, 5]))
def test_derivatives_of_all_orders(transform, n):
    x = numbers(n, 3, length(transform, n)).requires_grad_()
    assert torch.autograd.gradcheck(transform, x)
    assert torch.autograd.gradgradcheck(transform, x)


@each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_computed_in_float32(transform, dtype):
    x = numbers(0, 4, 64).to(dtype)
    assert torch.equal(transform(x), transform(x.float()).to(dtype))


@each
def test_float32_is_accurate_to_float32(transform):
    x = numbers(0, 4, 4096 if transform is fwht else 4095)
    error = (transform(x.float()).double() - transform(x)).norm() / x.norm()
    assert error < 4e-7


@each
def test_strides_and_batches_do_not_matter(transform):
    x = numbers(0, 8, 3, 16)
    torch.testing.assert_close(transform(x.transpose(0, 2)[..., :8]), transform(x.transpose(0, 2)[..., :8].clone()))
    torch.testing.assert_close(torch.vmap(transform, in_dims=1)(x), transform(x.movedim(1, 0)))


@each
def test_torch_func_differentiates_it_forward_and_backward(transform):
    x = numbers(0, 2, 8)
    hessian = torch.func.hessian(lambda x: transform(x).square().sum())(x)  # of |x|^2, the transform being orthonormal
    torch.testing.assert_close(hessian.reshape(16, 16), 2 * torch.eye(16, dtype=torch.float64))


@each
def test_is_a_well_formed_operator_in_one_compiled_graph(transform):
    x = numbers(0, 2, 8).requires_grad_()
    torch.library.opcheck(getattr(torch.ops.subspace, transform.__name__).default, (x,))
    compiled = torch.compile(lambda x: transform(2 * x).square().sum(), fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(transform(2 * x).square().sum(), x)
    torch.testing.assert_close(torch.autograd.grad(compiled(x), x), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@each
def test_cuda_equals_cpu(transform):
    x = numbers(0, 4, 64)
    torch.testing.assert_close(transform(x.cuda()).cpu(), transform(x))


@each
def test_bad_input_is_refused(transform):
    with pytest.raises(TypeError, match=r"x must be a real floating-point tensor, got torch.int64"):
        transform(torch.arange(4))
    with pytest.raises(TypeError, match=r"got torch.complex64"):
        transform(torch.zeros(4, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"last axis of length at least 1, got shape \(2, 0\)"):
        transform(torch.zeros(2, 0))
    with pytest.raises(ValueError, match="the last axis must be a power of two, got 6"):
        fwht(torch.zeros(6))
