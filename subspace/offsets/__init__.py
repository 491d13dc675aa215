"""Offsets: the fixed d of w = d + U theta, one file each.

A new one is a file, a line here and a line in tests/support/cases.py: docs/extending.md.
"""

from subspace.offsets.base import Offset
from subspace.offsets.block_hadamard import BlockDCT, BlockHadamard
from subspace.offsets.dct import DCT
from subspace.offsets.gaussian import Gaussian
from subspace.offsets.haar import Haar
from subspace.offsets.hadamard import Hadamard
from subspace.offsets.per_matrix import PerMatrix
from subspace.offsets.pretrained import Pretrained
from subspace.offsets.rank_one import RankOne
from subspace.offsets.signed_dct import SignedDCT
from subspace.offsets.signed_hadamard import SignedHadamard
from subspace.offsets.signed_permutation import SignedPermutation
from subspace.offsets.zero import Zero

__all__ = [
    "DCT",
    "BlockDCT",
    "BlockHadamard",
    "Gaussian",
    "Haar",
    "Hadamard",
    "Offset",
    "PerMatrix",
    "Pretrained",
    "RankOne",
    "SignedDCT",
    "SignedHadamard",
    "SignedPermutation",
    "Zero",
]
