"""SRHT: the matrix that its docstring states, whatever the pieces it is computed in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard

from subspace import Key
from subspace.embeddings import SRHT
from tests.support.cases import rest_slow
from tests.support.memory import peak_bytes
from tests.support.strategies import matrix, numbers

close = torch.testing.assert_close
SIZES = [(1, 1), (9, 1), (9, 9), (12, 10), (16, 16), (40, 3), (64, 8), (100, 5), (135, 33), (256, 60), (700, 130)]


def expected(numel: int, dim: int, of: int) -> torch.Tensor:
    """U from its definition, with scipy's H of +-1."""
    length = 1 << (dim - 1).bit_length()
    blocks = -(-numel // length)
    signs = Key(3).signs(blocks * dim).reshape(blocks, 1, dim)
    stacked = (hadamard(length)[:, :dim] * signs).reshape(blocks * length, dim)
    whole, few = numel // length * length, numel % length
    last = np.arange(few) if of == numel else Key(3).fold("rows").distinct(length, few)
    rows = Key(3).fold("w").signs(numel)[:, None] * stacked[np.concatenate([np.arange(whole), whole + last])]
    return torch.from_numpy(rows / of**0.5)


@pytest.mark.parametrize("numel, dim", SIZES)
@pytest.mark.parametrize("block", rest_slow([1, 64, 1 << 18], [64]))
def test_it_is_hadamard_matrices_with_random_signs(monkeypatch, numel, dim, block):
    monkeypatch.setattr("subspace.embeddings.srht.BLOCK", block)
    for of in (None, 2 * numel):
        U, dense = SRHT(numbers(0, numel), dim, key=Key(3), of=of), expected(numel, dim, of or numel)
        close(matrix(U), dense)
        close(torch.vmap(U)(torch.eye(dim, dtype=torch.float64)), dense.T)
        close(torch.vmap(U.adjoint)(torch.eye(numel, dtype=torch.float64)), dense)


def test_a_theta_shared_by_small_tensors_can_be_told_from_their_weights():
    for sizes in ([30, 30, 30], [1] * 100, [8] * 15, [200, 3]):
        parts = [SRHT(numbers(0, n), 50, key=Key(3).fold(str(i)), of=sum(sizes)) for i, n in enumerate(sizes)]
        U = torch.cat([torch.vmap(part)(torch.eye(50, dtype=torch.float64)).T for part in parts])
        close(U.norm(dim=0), torch.ones(50, dtype=torch.float64))
        assert torch.linalg.matrix_rank(U) == 50


@pytest.mark.parametrize("length", [1, 2, 8, 32, 64, 2048])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_long_transforms_equal_scipys(length, dtype):
    dim, numel = (3 * length + 3) // 4, length + 1  # the next power of two from dim is length
    theta, signs = numbers(1, dim), Key(3).signs(2 * dim).reshape(2, dim)
    exact = np.concatenate([hadamard(length)[:, :dim] @ (sign * theta.numpy()) for sign in signs])[:numel] / numel**0.5
    exact *= Key(3).fold("w").signs(numel)
    error = SRHT(numbers(0, numel).to(dtype), dim, key=Key(3))(theta.to(dtype)).double().numpy() - exact
    assert np.linalg.norm(error) <= 8 * torch.finfo(dtype).eps * np.linalg.norm(exact)


@pytest.mark.parametrize("dim", [1, 5, 7, 8])
def test_columns_are_orthonormal_where_rows_are_whole_blocks(dim):
    U = SRHT(numbers(0, 3, 1 << (dim - 1).bit_length()), dim, key=Key(3))
    close(matrix(U).T @ matrix(U), torch.eye(dim, dtype=torch.float64))


@pytest.mark.parametrize("numel, dim", [(64, 33), (100, 33), (100, 64), (127, 64), (333, 20)])
def test_columns_are_nearly_orthonormal_elsewhere(numel, dim):
    length = 1 << (dim - 1).bit_length()
    squares = torch.linalg.svdvals(matrix(SRHT(numbers(0, numel), dim, key=Key(3)))).square()
    assert (squares - 1).abs().max() <= length / numel + 1e-12


def test_coordinates_allow_for_the_rows_elsewhere():
    U, theta = SRHT(numbers(0, 4, 16), 13, key=Key(3), of=100), numbers(1, 13)
    close(U.coordinates(U(theta)), theta)


def test_a_product_holds_a_few_pieces_beside_the_weight(monkeypatch):
    monkeypatch.setattr("subspace.embeddings.srht.BLOCK", 4096)
    U, theta = SRHT(numbers(0, 300, 500), 64, key=Key(3)), numbers(1, 64).requires_grad_()

    def train() -> None:
        U(theta).sum().backward()

    train()
    assert peak_bytes(train) < 1.5 * 300 * 500 * 8


def test_nothing_is_held_or_kept_for_the_backward_pass():
    kept = []
    U, theta = SRHT(numbers(0, 40, 50), 30, key=Key(3)), numbers(1, 30).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda x: x):
        U(theta)
    assert not kept
    assert not any(isinstance(value, torch.Tensor) and value.numel() for value in vars(U).values())


def test_a_key_is_needed():
    with pytest.raises(TypeError, match="SRHT needs a key=, got None"):
        SRHT(torch.empty(3), 2)
