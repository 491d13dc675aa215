"""Embeddings: the fixed U of w = d + U theta, one file each.

A new one is a file, a line here and a line in tests/support/cases.py: docs/extending.md.
"""

from subspace.embeddings.base import Embedding
from subspace.embeddings.direct_sum import DirectSum
from subspace.embeddings.direction import Direction
from subspace.embeddings.fourier_ft import FourierFT
from subspace.embeddings.gaussian import Gaussian
from subspace.embeddings.identity import Identity
from subspace.embeddings.scaled import Scaled
from subspace.embeddings.sparse import Sparse
from subspace.embeddings.srht import SRHT

__all__ = ["SRHT", "DirectSum", "Direction", "Embedding", "FourierFT", "Gaussian", "Identity", "Scaled", "Sparse"]
