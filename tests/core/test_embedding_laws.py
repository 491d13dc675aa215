"""What every embedding promises: a fixed, injective, linear map with a true adjoint and pseudo-inverse."""

from __future__ import annotations

import copy
import itertools
import random
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from subspace import Key
from subspace._base.layout import STANDARD
from subspace.embeddings import Direction, DirectSum, Embedding, Gaussian, Identity, Scaled, Sparse
from subspace.offsets import DCT, Offset, Pretrained, Zero
from tests.support.cases import EMBEDDINGS
from tests.support.memory import peak_bytes
from tests.support.strategies import each_embedding, embedding, fractions, matrix, numbers, seeds, shapes

close = torch.testing.assert_close


@each_embedding
@given(shape=shapes, fraction=fractions, seed=seeds)
def test_is_linear_and_pure(case, shape, fraction, seed):
    U = embedding(case, shape, fraction, seed)
    a, b = numbers(seed + 1, U.dim), numbers(seed + 2, U.dim)
    before = a.clone()
    close(U(2 * a - 3 * b), 2 * U(a) - 3 * U(b))
    assert torch.equal(U(a), U(a))
    assert torch.equal(a, before)
    assert U(a).shape == shape


@each_embedding
@given(shape=shapes, fraction=fractions, seed=seeds)
def test_adjoint_is_the_adjoint(case, shape, fraction, seed):
    U = embedding(case, shape, fraction, seed)
    theta, w = numbers(seed + 1, U.dim), numbers(seed + 2, *shape)
    close((U(theta) * w).sum(), theta @ U.adjoint(w))
    close(U.adjoint(w), matrix(U).T @ w.flatten())


@each_embedding
@given(shape=shapes, fraction=fractions, seed=seeds)
def test_backward_is_the_adjoint(case, shape, fraction, seed):
    U = embedding(case, shape, fraction, seed)
    theta, w = numbers(seed + 1, U.dim).requires_grad_(), numbers(seed + 2, *shape)
    close(torch.autograd.grad((U(theta) * w).sum(), theta)[0], matrix(U).T @ w.flatten())


@each_embedding
@given(shape=shapes, fraction=fractions, seed=seeds)
def test_overrides_equal_their_references(case, shape, fraction, seed):
    U = embedding(case, shape, fraction, seed)
    w = numbers(seed + 1, *shape)
    close(U.adjoint(w), Embedding.adjoint(U, w))
    close(U(U.coordinates(w)), U(Embedding.coordinates(U, w)), rtol=1e-5, atol=1e-6)
    if len(shape) == 2:
        theta, x = numbers(seed + 2, U.dim), numbers(seed + 3, 2, 3, shape[1])
        close(U.linear(theta, x), Embedding.linear(U, theta, x))
        offsets = [Pretrained(w)] if U.layout == STANDARD else []
        own = getattr(U, "offset", None)
        for d in offsets + ([own] if isinstance(own, Offset) else []):
            close(U.linear_beside(d, theta, x), d.linear(x) + Embedding.linear(U, theta, x))
        thetas = numbers(seed + 4, 2, U.dim)
        for each in (x, x[:, 0]):
            wanted = [Embedding.linear(U, t, mine) for t, mine in zip(thetas, each, strict=True)]
            close(U.linear_each(thetas, each), torch.stack(wanted))


@each_embedding
@given(shape=shapes, fraction=fractions, seed=seeds)
def test_rank_is_dim(case, shape, fraction, seed):
    U = embedding(case, shape, fraction, seed)
    assert torch.linalg.matrix_rank(matrix(U)) == U.dim


@each_embedding
@given(shape=shapes, fraction=fractions, seed=seeds)
def test_coordinates_are_the_pseudo_inverse(case, shape, fraction, seed):
    U = embedding(case, shape, 0.8 * fraction, seed)
    theta, w = numbers(seed + 1, U.dim), numbers(seed + 2, *shape)
    close(U.coordinates(U(theta)), theta, rtol=1e-6, atol=1e-6)
    expected = torch.linalg.lstsq(matrix(U), w.reshape(-1, 1)).solution.flatten()
    close(U.coordinates(w), expected, rtol=1e-6, atol=1e-6)


@each_embedding
@given(shape=shapes, fraction=fractions, seed=seeds)
def test_orthonormal_columns(case, shape, fraction, seed):
    if case.orthonormal:
        U = matrix(embedding(case, shape, fraction, seed))
        close(U.T @ U, torch.eye(U.shape[1], dtype=torch.float64))


@each_embedding
def test_keeps_lengths_on_average(case):
    if case.scaled:
        squares = [
            matrix(embedding(case, (8, 8), 0.3, seed)).square().sum(0) for seed in range(3 if case.orthonormal else 60)
        ]
        mean = torch.cat(squares).mean()
        assert abs(mean - 1) < 5 * (2 / 64) ** 0.5 / len(torch.cat(squares)) ** 0.5


@each_embedding
@given(shape=shapes, fraction=fractions, seed=seeds)
def test_same_key_same_map(case, shape, fraction, seed):
    U, again = embedding(case, shape, fraction, seed), embedding(case, shape, fraction, seed)
    theta = numbers(seed + 1, U.dim)
    assert torch.equal(U(theta), again(theta))
    assert torch.equal(U(theta), copy.deepcopy(U)(theta))


@each_embedding
def test_another_key_another_map(case):
    one, other = embedding(case, (8, 8), 0.3, 1), embedding(case, (8, 8), 0.3, 2)
    assert torch.equal(matrix(one), matrix(other)) == (not case.random)


@each_embedding
@given(shape=shapes, fraction=fractions)
def test_follows_dtype_and_comes_back_exactly(case, shape, fraction):
    U = embedding(case, shape, fraction)
    theta = numbers(1, U.dim)
    exact = U(theta)
    for dtype in (torch.float32, torch.bfloat16):  # in which it is computed in float32
        U.to(dtype)
        wide = theta.float()
        assert U(wide).dtype == U.like.dtype == torch.float32
        error = (U(wide).double() - exact).norm() / exact.norm()
        assert error < 8 * torch.finfo(torch.float32).eps
    if not case.held:  # which is data, of the dtype it was given in
        assert torch.equal(U.double()(theta), exact)


@each_embedding
def test_has_no_state_of_its_own(case):
    U = embedding(case, (8, 8), 0.3)
    assert not list(U.parameters())
    assert not list(U.buffers())
    assert not U.state_dict()


@each_embedding
def test_global_generators_are_untouched(case):
    before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
    U = embedding(case, (6, 4))
    U.coordinates(U(numbers(0, U.dim)))
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    assert before[2] == random.getstate()


@pytest.mark.compile
@each_embedding
def test_maps_over_many_thetas_and_compiles_in_one_graph(case):
    torch._dynamo.reset()
    U = embedding(case, (6, 4))
    thetas = numbers(0, 3, U.dim)
    close(torch.vmap(U)(thetas), torch.stack([U(theta) for theta in thetas]))
    theta = thetas[0].clone().requires_grad_()
    compiled = torch.compile(lambda theta: U(theta).sin().sum(), fullgraph=True, backend="aot_eager")
    close(torch.autograd.grad(compiled(theta), theta), torch.autograd.grad(U(theta).sin().sum(), theta))


@each_embedding
def test_derivatives_of_second_order(case):
    U = embedding(case, (3, 2), 0.4)
    assert torch.autograd.gradgradcheck(lambda theta: U(theta).sin(), numbers(0, U.dim).requires_grad_())


@each_embedding
@pytest.mark.parametrize("fraction", [-0.4, 1.3])
def test_a_dim_outside_the_weight_is_refused(case, fraction):
    if case.free:
        with pytest.raises(ValueError, match=r"(dim|k) must be in \[[01], 1?\d\], got"):
            embedding(case, (3, 4), fraction)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@each_embedding
def test_cuda_equals_cpu(case):
    U = embedding(case, (6, 4))
    theta = numbers(0, U.dim)
    on_cpu = U(theta)
    close(U.cuda()(theta.cuda()).cpu(), on_cpu)
    close(U.adjoint(on_cpu.cuda()).cpu(), copy.deepcopy(U).cpu().adjoint(on_cpu))


@given(shape=shapes, fraction=fractions, seed=seeds)
def test_sparse_has_one_entry_per_column_and_at_most_one_per_row(shape, fraction, seed):
    dim = round(fraction * torch.Size(shape).numel())
    U = Sparse(numbers(0, *shape), dim, key=Key(seed))
    dense = matrix(U) if dim else torch.zeros(torch.Size(shape).numel(), 0)
    assert torch.equal(dense.sum(0), torch.ones(dim, dtype=dense.dtype))
    assert set(dense.sum(1).tolist()) <= {0.0, 1.0}
    assert sorted(U.index.tolist()) == U.index.tolist() == sorted(Key(seed).distinct(dense.shape[0], dim).tolist())


@given(seed=seeds, few=st.integers(0, 24), many=st.integers(0, 24))
def test_sparse_is_nested_in_dim(seed, few, many):
    few, many = sorted((few, many))
    index = [set(Sparse(torch.empty(4, 6), dim, key=Key(seed)).index.tolist()) for dim in (few, many)]
    assert index[0] <= index[1]


def test_sparse_that_was_moved_is_not_rebuilt_by_a_move_of_device_or_dtype():
    U = Sparse(torch.empty(4, 6), 3, key=Key(0))
    U.index.copy_(torch.tensor([1, 2, 3]))
    assert U.double().half().index.tolist() == [1, 2, 3]
    assert U.describe()["index"].tolist() == [1, 2, 3]


def test_sparse_leaves_the_meta_device_with_its_keys_index():
    U = Sparse(torch.empty(4, 6, device="meta"), 3, key=Key(0)).to_empty(device="cpu")
    assert torch.equal(U.index, Sparse(torch.empty(4, 6), 3, key=Key(0)).index)


@given(seed=seeds, dim=st.integers(1, 12))
def test_gaussian_entries_are_the_keys_stream_block_by_block(seed, dim):
    for stored, block in itertools.product((True, False), (1, 30, 1 << 20)):
        with mock.patch("subspace.embeddings.gaussian.BLOCK", block):
            U = Gaussian(numbers(0, 3, 4), dim, key=Key(seed), stored=stored)
            close(U.adjoint(numbers(1, 3, 4)), matrix(U).T @ numbers(1, 12))
        np.testing.assert_allclose(matrix(U), Key(seed).normal(12 * dim).reshape(12, dim) / 12**0.5)
        np.testing.assert_allclose(U.column_norms(), matrix(U).norm(dim=0))


def test_gaussian_rows_of_a_larger_u_are_scaled_as_such():
    U = Gaussian(numbers(0, 3, 4), 20, key=Key(0), of=48)
    np.testing.assert_allclose(matrix(U), Key(0).normal(240).reshape(12, 20) / 48**0.5)


def test_a_drawn_gaussian_never_holds_more_than_a_block(monkeypatch):
    monkeypatch.setattr("subspace.embeddings.gaussian.BLOCK", 4096)
    theta = numbers(0, 64).requires_grad_()
    drawn, stored = (Gaussian(numbers(0, 300, 50), 64, key=Key(0), stored=stored) for stored in (False, True))

    def train():
        drawn(theta).sum().backward()

    train()
    assert drawn.matrix is None
    whole, block, weight = 300 * 50 * 64 * 8, 4096 * 8, 300 * 50 * 8
    assert stored.matrix.nbytes == whole
    assert peak_bytes(train) < 6 * (block + weight) < whole / 4


@given(shape=shapes, alpha=st.floats(-2, 2))
def test_alpha_dct_plus_s_is_a_composition(shape, alpha):
    like = numbers(0, *shape)
    n = like.numel()
    if n < 3:
        return
    S = Sparse(like, n // 2, key=Key(3))
    s = numbers(1, n // 2)
    expected = alpha * DCT(like)().flatten()
    for place, value in zip(S.index.tolist(), s.tolist(), strict=True):
        expected[place] += value
    U = DirectSum([Direction(DCT(like)), S])
    close(U(torch.cat([torch.tensor([alpha], dtype=torch.float64), s])).flatten(), expected)


LIKE = torch.empty(2, 3)


@pytest.mark.parametrize(
    "bad, error",
    [
        (lambda: Sparse(LIKE), "exactly one of dim and index must be given, got dim=None and index=None"),
        (lambda: Sparse(LIKE, 2), "Sparse needs a key=, got None"),
        (
            lambda: Sparse(LIKE, index=torch.tensor([1.0])),
            "index must be a 1-d int32 or int64 tensor, got 1-d torch.float32",
        ),
        (lambda: Sparse(LIKE, index=torch.tensor([0, 6])), r"index must be .* in \[0, 6\), got 0 ... 6"),
        (lambda: Sparse(LIKE, index=torch.tensor([-1, 5])), r"index must be .* in \[0, 6\), got -1 ... 5"),
        (lambda: Sparse(LIKE, index=torch.tensor([4, 1, 4])), "index must be .* distinct .*, got 1 repeated"),
        (lambda: Gaussian(LIKE, 2), "Gaussian needs a key=, got None"),
        (lambda: Direction(Zero(LIKE)), "offset must not be zero, got Zero"),
        (lambda: DirectSum([]), r"embeddings must have one shape, got \[\]"),
        (
            lambda: DirectSum([Identity(LIKE), Identity(torch.empty(3, 2))]),
            r"embeddings must have one shape, got \[\(2, 3\), \(3, 2\)\]",
        ),
        (lambda: DirectSum([Identity(LIKE), Direction(DCT(LIKE))]), r"dim must be in \[1, 6\], got 7"),
        (lambda: Scaled(Identity(LIKE), torch.ones(5)), r"scale must have shape \(6,\), got \(5,\)"),
        (lambda: Scaled(Identity(LIKE), torch.zeros(6)), "scale must be finite and nowhere zero"),
        (
            lambda: Identity(torch.zeros(2, dtype=torch.int32)),
            "like must be a real floating-point tensor, got torch.int32",
        ),
    ],
)
def test_bad_input_is_refused(bad, error):
    with pytest.raises((TypeError, ValueError), match=error):
        bad()


def test_the_list_is_complete():
    from subspace import embeddings

    made = {type(part).__name__ for case in EMBEDDINGS for part in embedding(case, (4, 4)).modules()}
    assert made >= set(embeddings.__all__) - {"Embedding", "Transform", "Separable"}
    assert isinstance(embedding(EMBEDDINGS[0], (2,))(torch.ones(2)), Tensor)
