"""Every kind of d and U counts by the table, at one weight of 24 rows and 10 columns."""

import math

import pytest
import torch

from subspace import Key, SubspaceParametrization, embeddings, offsets
from subspace.embeddings import (
    SRHT,
    Basis,
    Circulant,
    Direction,
    DirectSum,
    FourierFT,
    Gaussian,
    Hashed,
    Identity,
    Kronecker,
    LowRank,
    RowScale,
    Scaled,
    Singular,
    Sparse,
)
from subspace.offsets import (
    DCT,
    BlockDCT,
    BlockHadamard,
    Haar,
    Hadamard,
    Pretrained,
    SignedDCT,
    SignedHadamard,
    SignedPermutation,
    Zero,
)
from subspace.study.training.costs import Flops
from subspace.study.training.costs.product_flops import layer

WAVES = 2.5 * (24 * math.log2(24) + 10 * math.log2(10))  # the transforms of a row of inputs and of one of outputs


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


def keyed(offset, **options):
    return lambda like: offset(like, key=Key(0), **options)


def basis(transform):
    return lambda like: Basis(transform(like), Sparse(like, 6, key=Key(0)))


def singular(like):
    return Singular(Pretrained(torch.arange(like.numel()).reshape(like.shape).sin()))


def alpha(offset):
    return lambda like: Direction(offset(like))


T24 = 2.5 * 24 * math.log2(24) + 6 * 13  # a DCT of 24
T8, T10 = 2.5 * 8 * 3 + 6 * 5, 2.5 * 10 * math.log2(10) + 6 * 6
H8, F2 = 8 * 3, 2.5 * 2  # a transform in a block of 8, a real FFT of 2
C2 = 8 * 2 * 12 * 5  # the products of 2 waves between 12 x 5 blocks
H32 = 32 * 5  # additions of a Walsh-Hadamard transform of 32, the next power of two from 24


@pytest.mark.parametrize(
    ("offset", "parts", "forward", "to_input", "to_theta", "step"),
    [
        (Hadamard, [sparse(6)], H32 + 48 + 12, H32 + 10 + 24 + 12, 12, 0),
        (Zero, [alpha(Hadamard), sparse(6)], H32 + 48 + 12, H32 + 10 + 24 + 12, 48 + 12, 0),
        (Hadamard, [alpha(Hadamard), sparse(6)], H32 + 48 + 12, H32 + 10 + 24 + 12, 48 + 12, 0),
        (signed, [sparse(6)], T24 + 24 + 10 + 12, T24 + 10 + 10 + 12, 12, 0),
        (Zero, [alpha(signed), sparse(6)], T24 + 48 + 10 + 12, T24 + 10 + 24 + 10 + 12, 48 + 12, 0),
        (keyed(SignedHadamard), [sparse(6)], H32 + 48 + 10 + 12, H32 + 10 + 24 + 10 + 12, 12, 0),
        (Haar, [sparse(6)], 92 + 24 + 12, 92 + 10 + 12, 12, 0),
        (Zero, [alpha(Haar), sparse(6)], 92 + 48 + 12, 92 + 10 + 24 + 12, 48 + 12, 0),
        (keyed(BlockHadamard, block=8), [sparse(6)], 3 * H8 + 24 + 24 + 24 + 12, 3 * H8 + 24 + 24 + 10 + 12, 12, 0),
        (keyed(BlockDCT, block=8), [sparse(6)], 3 * T8 + 24 + 24 + 12, 3 * T8 + 24 + 10 + 12, 12, 0),
        (keyed(SignedPermutation), [sparse(6)], 48 + 12, 48 + 12, 12, 0),
        (Zero, [lambda like: RowScale(DCT(like))], T24 + 48, T24 + 10 + 24, 48, 0),
        (Zero, [lambda like: LowRank(like, 3, 2, key=Key(0))], 40 + 12 + 144, 40 + 12, 144 + 12, 0),
        (Zero, [lambda like: LowRank(like, None, 2, key=Key(0))], 40 + 96, 40 + 96, 96, 0),
        (Zero, [lambda like: Circulant(like, 2)], 5 * F2 + C2 + 12 * F2, 5 * F2 + C2, 12 * F2 + C2, 0),
        (Zero, [lambda like: Kronecker(like, 6, 5, key=Key(0))], 80 + 240, 240 + 80, 80 + 240, 0),
        (Zero, [basis(embeddings.DCT)], T10 + 12 + T24, T10 + 12, T24 + 12, 0),
        (Zero, [basis(embeddings.Haar)], 36 + 12 + 92, 36 + 12, 92 + 12, 0),
        (Zero, [basis(embeddings.Hadamard)], 36 + 12 + 112, 36 + 12, 112 + 12, 0),
        (Zero, [basis(singular)], 200 + 12 + 1152, 200 + 12, 1152 + 12, 0),
        (Zero, [basis(Identity)], 12, 12, 12, 0),
        (Zero, [lambda like: Hashed(like, 7, key=Key(0))], 480, 480, 480, 2 * (240 + 7)),
        (Zero, [embeddings.Haar], 480, 480, 480, 2 * (24 * 36 + 10 * 92)),
        (gaussian, [sparse(6)], 480, 480, 12, 6),
        (gaussian, [Identity], 480, 480, 480, 2 * 240),
        (Zero, [alpha(gaussian), sparse(6)], 480, 480, 480, 6 + 2 * 480),
        (Zero, [lambda like: Gaussian(like, 7, key=Key(0))], 480, 480, 480, 2 * 480 * 7),
        (Zero, [lambda like: Scaled(Gaussian(like, 7, key=Key(0)), torch.ones(7))], 480, 480, 480, 2 * 480 * 7),
        (Zero, [lambda like: SRHT(like, 7, key=Key(0))], 480, 480, 480, 2 * 240 * (3 + 1)),
        (Zero, [lambda like: FourierFT(like, 7, key=Key(0))], WAVES + 28, WAVES + 28, 28, 0),
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
