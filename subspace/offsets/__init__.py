"""Offsets: the fixed d of w = d + U theta, one file each.

A new one is a file, a line here and a line in tests/support/cases.py: docs/extending.md.
"""

from subspace.offsets.base import Offset
from subspace.offsets.dct import DCT
from subspace.offsets.gaussian import Gaussian
from subspace.offsets.hadamard import Hadamard
from subspace.offsets.pretrained import Pretrained
from subspace.offsets.rank_one import RankOne
from subspace.offsets.signed_dct import SignedDCT
from subspace.offsets.zero import Zero

__all__ = ["DCT", "Gaussian", "Hadamard", "Offset", "Pretrained", "RankOne", "SignedDCT", "Zero"]
