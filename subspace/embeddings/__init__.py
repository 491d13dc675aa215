"""Embeddings: the fixed U of w = d + U theta, one file each.

A new one is a file, a line here and a line in tests/support/cases.py: docs/extending.md.
"""

from subspace.embeddings.base import Embedding
from subspace.embeddings.basis import Basis, Transform
from subspace.embeddings.circulant import Circulant
from subspace.embeddings.column_scale import ColumnScale
from subspace.embeddings.dct import DCT
from subspace.embeddings.direct_sum import DirectSum
from subspace.embeddings.direction import Direction
from subspace.embeddings.fourier_ft import FourierFT
from subspace.embeddings.gaussian import Gaussian
from subspace.embeddings.given import Given
from subspace.embeddings.haar import Haar
from subspace.embeddings.hadamard import Hadamard
from subspace.embeddings.hashed import Hashed
from subspace.embeddings.identity import Identity
from subspace.embeddings.kronecker import Kronecker
from subspace.embeddings.low_rank import LowRank
from subspace.embeddings.row_scale import RowScale
from subspace.embeddings.scaled import Scaled
from subspace.embeddings.separable import Separable
from subspace.embeddings.singular import Singular
from subspace.embeddings.sparse import Sparse
from subspace.embeddings.srht import SRHT
from subspace.embeddings.tiny_lora import TinyLoRA

__all__ = [
    "DCT",
    "SRHT",
    "Basis",
    "Circulant",
    "ColumnScale",
    "DirectSum",
    "Direction",
    "Embedding",
    "FourierFT",
    "Gaussian",
    "Given",
    "Haar",
    "Hadamard",
    "Hashed",
    "Identity",
    "Kronecker",
    "LowRank",
    "RowScale",
    "Scaled",
    "Separable",
    "Singular",
    "Sparse",
    "TinyLoRA",
    "Transform",
]
