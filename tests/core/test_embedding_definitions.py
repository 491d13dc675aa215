"""Each embedding's own definition, against a dense matrix or a peer's formula, and what it refuses."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.fft
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from subspace import (
    Key,
    Layout,
    SubspaceParametrization,
    is_structured,
    load,
    materialize,
    offsets,
    register,
    save,
    share,
    structured,
    subspaces,
    summary,
)
from subspace.embeddings import (
    DCT,
    Basis,
    Circulant,
    ColumnScale,
    Gaussian,
    Given,
    Haar,
    Hadamard,
    Hashed,
    Identity,
    Kronecker,
    LowRank,
    RowScale,
    Singular,
    Sparse,
    TinyLoRA,
)
from subspace.offsets import Pretrained, SignedDCT, Zero
from tests.core.test_offset_laws import haar_matrix
from tests.support.strategies import matrix, numbers, seeds

close = torch.testing.assert_close
sizes = st.integers(1, 24)


@given(n=st.integers(2, 60), fraction=st.floats(0, 1), seed=seeds)
def test_hashed_has_one_sign_in_every_row_and_as_many_in_every_column(n, fraction, seed):
    dim = 1 + round(fraction * (n - 1))
    U = matrix(Hashed(numbers(0, n), dim, key=Key(seed)))
    assert ((U != 0).sum(1) == 1).all()
    counts = (U != 0).sum(0)
    assert set(counts.tolist()) <= {n // dim, -(-n // dim)}
    close(U[U != 0].abs(), torch.full((n,), math.sqrt(dim / n), dtype=torch.float64))
    close(U.T @ U, torch.diag(counts * dim / n).double())


def test_hashed_signs_and_places_are_random():
    U = matrix(Hashed(numbers(0, 4000), 40, key=Key(0)))
    assert 0.4 < float((U > 0).sum() / 4000) < 0.6
    places = U.abs().argmax(1)
    assert abs(np.corrcoef(places[1:], places[:-1])[0, 1]) < 0.1


MAPS = {
    "hashed": lambda w, dim, key, of: Hashed(w, dim, key=key, of=of),
    "tiny-lora": lambda w, dim, key, of: TinyLoRA(w, dim, rank=3, key=key, of=of),
}


@pytest.mark.parametrize("name", MAPS)
def test_one_theta_of_several_tensors_has_unit_columns_altogether(name):
    shapes = [(8, 9), (3, 4), (16, 5), (20, 20)]
    of = sum(math.prod(shape) for shape in shapes)
    parts = [MAPS[name](numbers(0, *shape), 13, Key(i), of) for i, shape in enumerate(shapes)]
    squares = [matrix(part).square().sum(0) for part in parts]
    close(sum(squares), torch.ones(13, dtype=torch.float64), rtol=0.05, atol=0)
    for shape, each in zip(shapes, squares, strict=True):
        close(each.mean(), torch.tensor(math.prod(shape) / of, dtype=torch.float64))
    assert torch.linalg.matrix_rank(torch.cat([matrix(part) for part in parts])) == 13


@pytest.mark.parametrize("name", MAPS)
def test_one_theta_of_several_tensors_trains_and_is_saved(name, tmp_path):
    def net():
        return nn.Sequential(nn.Linear(8, 9), nn.Tanh(), nn.Linear(9, 3)).double()

    model = net()
    for i in (0, 2):
        w = model[i].weight
        register(model[i], "weight", offsets.DCT(w), MAPS[name](w, 5, Key(i), 99))
    share(model, nn.Parameter(numbers(1, 5)))
    dense, x = materialize(model), numbers(2, 4, 8)
    for each in (model, dense):
        each(x).square().sum().backward()
    expected = sum(matrix(space.embedding).T @ dense.get_parameter(q).grad.flatten() for q, space in subspaces(model))
    theta = next(subspaces(model))[1].theta
    close(theta.grad, expected)
    save(model, tmp_path / "c")
    again = net()
    with torch.no_grad():
        again[0].bias.copy_(model[0].bias), again[2].bias.copy_(model[2].bias)
    close(load(again, tmp_path / "c")(x), model(x))


def frames(U: LowRank) -> tuple[np.ndarray, np.ndarray]:
    """L and M, from U alone: of orthonormal columns, and U theta = L R M^T."""
    (n_out, n_in), r, s = U.fans, U.left or U.fans[0], U.right or U.fans[1]
    cores = np.eye(r * s).reshape(r * s, r, s)
    images = np.stack([U.layout.to_matrix(U(torch.from_numpy(core).flatten())).numpy() for core in cores])
    L = np.linalg.svd(images[:, :, :].transpose(1, 0, 2).reshape(n_out, -1))[0][:, :r]
    M = np.linalg.svd(images.transpose(2, 0, 1).reshape(n_in, -1))[0][:, :s]
    return L @ L.T, M @ M.T


@given(n_out=sizes, n_in=sizes, seed=seeds)
def test_low_rank_is_the_kronecker_product_of_its_frames(n_out, n_in, seed):
    r, s = 1 + seed % n_out, 1 + seed % n_in
    U = LowRank(numbers(0, n_out, n_in), r, s, key=Key(seed))
    L, M = U.L.numpy(), U.M.numpy()
    np.testing.assert_allclose(L.T @ L, np.eye(r), atol=1e-12)
    np.testing.assert_allclose(matrix(U), np.kron(L, M), atol=1e-12)
    P, Q = frames(U)
    np.testing.assert_allclose(P, L @ L.T, atol=1e-10)
    np.testing.assert_allclose(Q, M @ M.T, atol=1e-10)


def test_a_random_frame_is_uniform():
    """The first entry of a uniform unit vector of n entries has variance 1 / n, and either sign as often."""
    like = numbers(0, 20, 3)
    first = np.array([LowRank(like, 2, 1, key=Key(seed)).L[0, 0].item() for seed in range(400)])
    assert abs(first.mean()) < 4 / 20**0.5 / 20
    np.testing.assert_allclose(first.var(), 1 / 20, rtol=0.3)


@given(n_out=sizes, n_in=sizes, seed=seeds)
def test_lora_xs_lies_between_the_first_singular_vectors(n_out, n_in, seed):
    w = numbers(seed, n_out, n_in)
    rank = 1 + seed % min(n_out, n_in)
    U = LowRank(w, rank, rank, offset=Pretrained(w))
    u, s, vh = scipy.linalg.svd(w.numpy())
    theta = numbers(seed + 1, rank, rank)
    signs = np.sign(u[np.abs(u).argmax(0), np.arange(u.shape[1])])[:rank]
    expected = (u[:, :rank] * signs) @ theta.numpy() @ (vh[:rank] * signs[:, None])
    np.testing.assert_allclose(U(theta.flatten()), expected, atol=1e-10)
    best = (u[:, :rank] * s[:rank]) @ vh[:rank]
    np.testing.assert_allclose(U(U.coordinates(w)), best, atol=1e-10)  # Eckart and Young's


def test_lora_fa_trains_one_factor():
    U, B = LowRank(numbers(0, 7, 9), None, 4, key=Key(0)), numbers(1, 7, 4)
    close(U(B.flatten()), B @ U.M.T)
    U, A = LowRank(numbers(0, 7, 9), 4, None, key=Key(0)), numbers(1, 4, 9)
    close(U(A.flatten()), U.L @ A)
    identity = LowRank(numbers(0, 7, 9))
    close(matrix(identity), torch.eye(63, dtype=torch.float64))


def test_frames_of_singular_vectors_stay_what_they_were_made_of():
    w = numbers(0, 6, 8)
    d = Pretrained(w)
    U, theta = LowRank(w, 2, 2, offset=d), numbers(1, 4)
    before = U(theta)
    d.weight.mul_(torch.arange(8))
    assert torch.equal(U.bfloat16().double()(theta), before)


def test_tiny_lora_mixes_small_matrices_between_frames():
    w = numbers(0, 9, 7)
    U, theta = TinyLoRA(w, 5, rank=3, key=Key(2), offset=Pretrained(w)), numbers(1, 5)
    P = np.stack([p / np.linalg.norm(p) for p in Key(2).fold("P").normal(45).reshape(5, 3, 3)])
    u, _, vh = scipy.linalg.svd(w.numpy())
    signs = np.sign(u[np.abs(u).argmax(0), np.arange(9)])[:3]
    expected = (u[:, :3] * signs) @ np.einsum("i,ijk->jk", theta, P) @ (vh[:3] * signs[:, None])
    np.testing.assert_allclose(U(theta), expected, atol=1e-12)


@pytest.mark.parametrize("offset", [offsets.DCT, lambda w: SignedDCT(w, key=Key(0)), lambda w: Pretrained(w)])
@pytest.mark.parametrize("shape", [(5, 8), (8, 5), (6, 4, 3, 3), (7,)])
def test_row_scale_gives_every_output_a_number(offset, shape):
    d, theta = offset(numbers(0, *shape)), numbers(1, shape[0])
    flat = d().flatten(1) if len(shape) > 1 else d()[:, None]
    close(RowScale(d, scale=2.0)(theta).reshape(flat.shape), 2 * torch.diag(theta) @ flat)
    unit = flat / flat.norm(dim=1, keepdim=True)
    close(RowScale(d)(theta).reshape(flat.shape), torch.diag(theta) @ unit)


@pytest.mark.parametrize("shape", [(5, 8), (8, 5), (6, 4, 3, 3)])
def test_column_scale_gives_every_input_a_number(shape):
    d, theta = Pretrained(numbers(0, *shape)), numbers(1, shape[1])
    close(ColumnScale(d, scale=2.0)(theta), 2 * torch.einsum("oi...,i->oi...", d(), theta))
    lengths = d().transpose(0, 1).flatten(1).norm(dim=1)
    close(ColumnScale(d)(theta), torch.einsum("oi...,i->oi...", d(), theta / lengths))
    experts = Pretrained(numbers(0, 3, 5, 4))
    theta, layout = numbers(1, 12), Layout.parse("batch out in")
    close(ColumnScale(experts, scale=1.0, layout=layout)(theta), experts() * theta.reshape(3, 1, 4))


def test_row_scales_of_a_weight_and_a_bias_with_zeros_share_theta():
    w, b, theta = numbers(0, 4, 6), torch.tensor([0.0, 1.0, 0.0, -2.0], dtype=torch.float64), numbers(1, 4)
    parts = [RowScale(Pretrained(t), scale=1.0, of=28) for t in (w, b)]
    close(parts[0](theta), theta[:, None] * w)
    close(parts[1](theta), theta * b)


@given(blocks=st.tuples(st.integers(1, 4), st.integers(1, 4)), b=st.integers(1, 6), seed=seeds)
def test_circulant_blocks_are_scipys(blocks, b, seed):
    (p, q), like = blocks, numbers(0, blocks[0] * b, blocks[1] * b)
    U, theta = Circulant(like, b, scale=1.0), numbers(seed, p * q * b)
    rows = [[scipy.linalg.circulant(theta.reshape(p, q, b)[i, j].numpy()) for j in range(q)] for i in range(p)]
    np.testing.assert_allclose(U(theta), np.block(rows))
    close(Circulant(like, b)(theta), U(theta) / b**0.5)


@given(rows=st.tuples(*2 * [st.integers(1, 4)]), columns=st.tuples(*2 * [st.integers(1, 4)]), seed=seeds)
def test_kronecker_is_numpys(rows, columns, seed):
    like = numbers(0, math.prod(rows), math.prod(columns))
    U, theta = Kronecker(like, rows[0], columns[0], key=Key(seed)), numbers(seed, rows[0] * columns[0])
    np.testing.assert_allclose(U(theta), np.kron(theta.reshape(rows[0], columns[0]), U.C))
    assert U.C.norm().item() == pytest.approx(1)


@given(n=st.integers(1, 30), fraction=st.floats(0, 1), seed=seeds)
def test_given_is_an_orthonormal_basis_of_the_columns_in_their_order(n, fraction, seed):
    dim = 1 + round(fraction * (n - 1))
    columns = numbers(seed, n, dim)
    U = matrix(Given(numbers(0, n), columns))
    close(U.T @ U, torch.eye(dim, dtype=torch.float64))
    for k in range(1, dim + 1):  # the first k columns span what the first k did
        close(U[:, :k] @ (U[:, :k].T @ columns[:, :k]), columns[:, :k])
    assert torch.equal(matrix(Given(numbers(0, n), U)), U)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_given_basis_comes_back_from_a_file_to_the_bit(dtype, tmp_path):
    def layer():
        return nn.Linear(8, 6, dtype=dtype)

    model = layer()
    register(model, "weight", Zero(model.weight), Given(model.weight, numbers(0, 48, 5)), numbers(1, 5))
    save(model, tmp_path / "c")
    again = load(layer(), tmp_path / "c")
    assert torch.equal(again.weight, model.weight)


def hadamard_matrix(n: int) -> np.ndarray:
    pieces = [2**bit for bit in reversed(range(n.bit_length())) if n >> bit & 1]
    return scipy.linalg.block_diag(*(scipy.linalg.hadamard(m) / m**0.5 for m in pieces))


ONE_AXIS = {
    DCT: lambda n: scipy.fft.dct(np.eye(n), axis=0, norm="ortho"),
    Haar: haar_matrix,
    Hadamard: hadamard_matrix,
    Identity: np.eye,
}


@pytest.mark.parametrize("cls", ONE_AXIS)
@given(n_out=sizes, n_in=sizes)
def test_a_basis_of_a_matrix_is_a_kronecker_product(cls, n_out, n_in):
    A, B = ONE_AXIS[cls](n_out), ONE_AXIS[cls](n_in)
    np.testing.assert_allclose(matrix(cls(numbers(0, n_out, n_in))), np.kron(A, B).T, atol=1e-12)


@pytest.mark.parametrize("cls", [DCT, Haar, Hadamard])
@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (5, 3, 4), (4, 7), (7,), (3, 1, 2, 5)])
def test_a_basis_of_filters_transforms_each_along_its_axes(cls, shape):
    c = numbers(0, *shape)
    expected = c.numpy()
    for axis, n in enumerate(shape[1:], 1):
        expected = np.moveaxis(np.tensordot(ONE_AXIS[cls](n).T, expected, (1, axis)), 0, axis)
    U = cls(c, over="filters")
    np.testing.assert_allclose(U(c.flatten()), expected, atol=1e-12)
    np.testing.assert_allclose(U.adjoint(U(c.flatten())), c.flatten(), atol=1e-12)


@pytest.mark.parametrize("cls", [DCT, Haar, Hadamard])
def test_a_basis_of_a_convolution_transforms_its_patches(cls):
    c = numbers(0, 6, 4, 3, 2)
    patches = c.permute(0, 2, 3, 1).reshape(6, 24).numpy()
    expected = ONE_AXIS[cls](6).T @ patches @ ONE_AXIS[cls](24)
    w = cls(c)(c.flatten())
    np.testing.assert_allclose(w.permute(0, 2, 3, 1).reshape(6, 24), expected, atol=1e-12)


@pytest.mark.parametrize("shape", [(5, 8), (8, 5), (6, 6)])
def test_singular_coefficients_of_the_weight_itself_are_its_singular_values(shape):
    w = numbers(0, *shape)
    c = Singular(Pretrained(w)).adjoint(w).reshape(shape)
    expected = torch.zeros_like(w)
    expected.diagonal().copy_(torch.linalg.svdvals(w))
    close(c, expected)


def test_singular_vectors_of_a_weight_of_low_rank_are_completed():
    w = numbers(0, 6, 2) @ numbers(1, 2, 9)
    U = matrix(Singular(Pretrained(w)))
    close(U.T @ U, torch.eye(54, dtype=torch.float64))


@pytest.mark.parametrize("cls", ONE_AXIS)
@pytest.mark.parametrize("shape", [(5, 8), (6, 4, 3, 3)])
def test_sparse_coefficients_are_columns_of_the_basis(cls, shape):
    like = numbers(0, *shape)
    S = Sparse(like, 9, key=Key(1))
    close(matrix(Basis(cls(like), S)), matrix(cls(like))[:, S.index])


FAST = {
    "low rank": lambda w: LowRank(w, 2, 2, key=Key(0)),
    "tiny": lambda w: TinyLoRA(w, 2, rank=2, key=Key(0)),
    "row scale": lambda w: RowScale(offsets.DCT(w)),
    "circulant": lambda w: Circulant(w, 4),
    "kronecker": lambda w: Kronecker(w, 2, 3, key=Key(0)),
    "dct": lambda w: Basis(DCT(w), Sparse(w, 6, key=Key(0))),
    "haar": lambda w: Basis(Haar(w), Sparse(w, 6, key=Key(0))),
    "hadamard": lambda w: Basis(Hadamard(w, over="filters"), Sparse(w, 6, key=Key(0))),
    "singular": lambda w: Basis(Singular(Pretrained(w)), Sparse(w, 6, key=Key(0))),
}


@pytest.mark.parametrize("name", FAST)
def test_a_structured_layer_multiplies_without_building_u_theta(name, monkeypatch):
    layer, x = nn.Linear(12, 8).double(), numbers(0, 3, 12)
    space = register(layer, "weight", offsets.DCT(layer.weight), FAST[name](layer.weight))
    expected = layer(x)
    assert is_structured(structured(layer))
    monkeypatch.setattr(SubspaceParametrization, "is_linear_faster", lambda self, rows: True)  # as of larger ones
    monkeypatch.setattr(type(space.embedding), "forward", lambda self, theta: pytest.fail("U theta was built"))
    close(layer(x), expected)
    assert summary(layer).rows[0].plain_because is None


def test_frames_that_save_nothing_leave_the_layer_plain():
    layer = nn.Linear(12, 8)
    register(layer, "weight", Zero(layer.weight), LowRank(layer.weight, 8, 12, key=Key(0)))
    assert not is_structured(structured(layer))


W = torch.zeros(4, 6)


@pytest.mark.parametrize(
    "bad, error",
    [
        (lambda: Hashed(W, 25, key=Key(0)), r"dim must be in \[1, 24\], got 25"),
        (lambda: Hashed(W, 3), "Hashed needs a key=, got None"),
        (lambda: LowRank(W, 5, 2, key=Key(0)), r"left must be in \[1, 4\], the rows of its frame, got 5"),
        (lambda: LowRank(W, 2, 7, key=Key(0)), r"right must be in \[1, 6\], the rows of its frame, got 7"),
        (lambda: LowRank(W, 0, 2, key=Key(0)), r"left must be in \[1, 4\], .*, got 0"),
        (lambda: LowRank(W, 2, 2), "LowRank needs a key=, got None"),
        (lambda: LowRank(W, 2, 2, offset=Zero(torch.zeros(6, 4))), r"offset must have shape \(4, 6\), got \(6, 4\)"),
        (
            lambda: LowRank(W, 2, 2, offset=Pretrained(torch.ones(4, 6))),
            "left must be at most 1, the rank of d, got 2",
        ),
        (
            lambda: TinyLoRA(W, 5, rank=2, key=Key(0)),
            r"dim must be in \[1, 4\], the entries of a matrix of rank 2, got 5",
        ),
        (lambda: TinyLoRA(W, 5, rank=5, key=Key(0)), r"left must be in \[1, 4\], .*, got 5"),
        (lambda: TinyLoRA(W, 2), "TinyLoRA needs a key=, got None"),
        (lambda: RowScale(Zero(W)), "every row of offset must have an entry other than 0, got 4 of 4 without"),
        (lambda: RowScale(offsets.DCT(W), of=30), "scale must be a number where several tensors share theta, got None"),
        (lambda: ColumnScale(Zero(W)), "every input of offset must have an entry other than 0, got 6 of 6 without"),
        (lambda: ColumnScale(offsets.DCT(W), scale=0.0), "scale must be positive and finite, got 0.0"),
        (lambda: LowRank(W, None, torch.ones(6, 2)), "right must have orthonormal columns, got others"),
        (lambda: LowRank(W, torch.eye(6), None), r"left must have 4 rows and 1 to 4 columns, got \(6, 6\)"),
        (lambda: RowScale(offsets.DCT(W), scale=0.0), "scale must be positive and finite, got 0.0"),
        (lambda: Circulant(W, 3), "block must divide 4 outputs and 6 inputs, got 3"),
        (lambda: Circulant(W, 0), "block must divide 4 outputs and 6 inputs, got 0"),
        (lambda: Circulant(W, 2, scale=math.inf), "scale must be positive and finite, got inf"),
        (lambda: Kronecker(W, 3, 2, key=Key(0)), "height and width must divide 4 outputs and 6 inputs, got 3 and 2"),
        (lambda: Kronecker(W, 2, 0, key=Key(0)), "height and width must divide 4 outputs and 6 inputs, got 2 and 0"),
        (lambda: Kronecker(W, 2, 2), "Kronecker needs a key=, got None"),
        (lambda: Given(W, torch.ones(23, 2)), r"matrix must have shape \(24, dim\), got \(23, 2\)"),
        (lambda: Given(W, torch.ones(24, 2)), "matrix must have 2 independent columns, got 1"),
        (lambda: Given(W, torch.full((24, 1), math.nan)), "matrix must be finite, got 24 entries that are not"),
        (lambda: Given(W, torch.ones(24, 25)), r"dim must be in \[1, 24\], got 25"),
        (lambda: DCT(W, over="rows"), "over must be 'matrix' or 'filters', got 'rows'"),
        (lambda: Basis(Gaussian(W, 24, key=Key(0)), Sparse(W, 2, key=Key(0))), "must be a Transform, got Gaussian"),
        (lambda: Basis(DCT(W), DCT(W)), "sparse must be a Sparse embedding, got DCT"),
        (
            lambda: Basis(DCT(W), Sparse(W.T, 2, key=Key(0))),
            r"transform and sparse must have one shape, got \(4, 6\) and \(6, 4\)",
        ),
    ],
)
def test_bad_input_is_refused(bad, error):
    with pytest.raises((TypeError, ValueError), match=error):
        bad()


def test_a_sum_of_a_scaled_offset_and_sparse_coefficients_is_injective():
    from subspace.embeddings import Direction, DirectSum

    w = numbers(0, 8, 12)
    U = DirectSum([Direction(offsets.DCT(w)), Basis(Haar(w), Sparse(w, 9, key=Key(0)))])
    assert torch.linalg.matrix_rank(matrix(U)) == 10
    assert U.alphas() == 1
    for dtype, x in itertools.product([torch.float32, torch.bfloat16], [numbers(1, 3, 12)]):
        y = U.to(dtype).linear(numbers(2, 10).to(dtype), x.to(dtype))
        close(y.double(), (x.to(dtype).double() @ U(numbers(2, 10).to(dtype)).double().T), rtol=0.1, atol=0.1)
