"""Every kind of d and U counts by the table, at one weight of 24 rows and 10 columns."""

import math

import pytest
import torch

from subspace import Key, SubspaceParametrization, offsets
from subspace.embeddings import SRHT, Direction, DirectSum, FourierFT, Gaussian, Identity, Scaled, Sparse
from subspace.offsets import DCT, Hadamard, SignedDCT, Zero
from subspace.study.training.costs import Flops
from subspace.study.training.costs.product_flops import layer


def product(offset, *parts, shape=(24, 10), positions=1, groups=1):
    """The count of one weight with d and U = the sum of the parts, whose input needs a gradient."""
    like = torch.zeros(shape)
    U = DirectSum([part(like) for part in parts]) if len(parts) > 1 else parts[0](like)
    return layer(like.shape, SubspaceParametrization(offset(like), U), positions, True, groups)


def sparse(dim):
    return lambda like: Sparse(like, dim, key=Key(0))


def gaussian(like):
    return offsets.Gaussian(like, key=Key(0))


def signed(like):
    return SignedDCT(like, key=Key(0))


def alpha(offset):
    return lambda like: Direction(offset(like))


T24 = 2.5 * 24 * math.log2(24) + 6 * 13  # a DCT of 24
H32 = 32 * 5  # additions of a Walsh-Hadamard transform of 32, the next power of two from 24


@pytest.mark.parametrize(
    ("offset", "parts", "forward", "to_input", "to_theta", "step"),
    [
        (Hadamard, [sparse(6)], H32 + 48 + 12, H32 + 10 + 24 + 12, 12, 0),
        (Zero, [alpha(Hadamard), sparse(6)], H32 + 48 + 12, H32 + 10 + 24 + 12, 48 + 12, 0),
        (Hadamard, [alpha(Hadamard), sparse(6)], H32 + 48 + 12, H32 + 10 + 24 + 12, 48 + 12, 0),
        (signed, [sparse(6)], T24 + 24 + 10 + 12, T24 + 10 + 10 + 12, 12, 0),
        (Zero, [alpha(signed), sparse(6)], T24 + 48 + 10 + 12, T24 + 10 + 24 + 10 + 12, 48 + 12, 0),
        (gaussian, [sparse(6)], 480, 480, 12, 6),
        (gaussian, [Identity], 480, 480, 480, 2 * 240),
        (Zero, [alpha(gaussian), sparse(6)], 480, 480, 480, 6 + 2 * 480),
        (Zero, [lambda like: Gaussian(like, 7, key=Key(0))], 480, 480, 480, 2 * 480 * 7),
        (Zero, [lambda like: Scaled(Gaussian(like, 7, key=Key(0)), torch.ones(7))], 480, 480, 480, 2 * 480 * 7),
        (Zero, [lambda like: SRHT(like, 7, key=Key(0))], 480, 480, 480, 2 * 240 * (3 + 1)),
        (Zero, [lambda like: FourierFT(like, 7, key=Key(0))], 480, 480, 480, 2 * 2.5 * 240 * math.log2(240)),
    ],
)
def test_every_kind_of_d_and_u_counts_by_the_table(offset, parts, forward, to_input, to_theta, step):
    counted = product(offset, *parts)
    assert counted == Flops(forward, to_input, to_theta, pytest.approx(step), 480)
    thrice = product(offset, *parts, positions=3)
    assert thrice == Flops(3 * forward, 3 * to_input, 3 * to_theta, pytest.approx(step), 3 * 480)


def test_a_grouped_convolution_has_a_transform_built_and_what_is_sparse_not():
    assert product(Zero, alpha(DCT), sparse(6), groups=2).forward == 480
    assert product(Zero, sparse(6), groups=2).forward == 12
