"""The FLOPs of a product with W = d + U theta, part by part, by what is sparse or fast. A multiply-add counts as 2.

A weight W of m rows and n columns meets a sample at p positions: 1 for a linear layer; the output's pixels, padding
included, for a convolution. With q = max(m, n) and T(q) = 2.5 q log2 q + 6 (q // 2 + 1), a real FFT by the usual count
of Frigo and Johnson (2005) with its twiddle factors, and H(q) = Q log2 Q additions, Q the next power of two from q, the
products cost, at each position:

| part                  | forward      | to the input | to theta |
|-----------------------|--------------|--------------|----------|
| identity: dense       | 2 m n        | 2 m n        | 2 m n    |
| sparse, s entries     | 2 s          | 2 s          | 2 s      |
| DCT                   | T(q) + m     | T(q) + n     | 0        |
| alpha DCT             | T(q) + 2 m   | T(q) + n + m | 2 m      |
| either, signed        | n more       | n more       | the same |
| Hadamard              | H(q) + 2 m   | H(q) + n + m | 0        |
| alpha Hadamard        | H(q) + 2 m   | H(q) + n + m | 2 m      |
| any other d or U      | 2 m n, once  | 2 m n, once  | below    |

The m and n are additions to the other part's result, and products with alpha or with Hadamard's scale. Any other d or U
has W built, and so has a DCT or Hadamard part of a grouped convolution, where every group would need transforms of its
own: one dense product in all. A sparse U then adds 2 s to theta at each position and s a step. Any other U takes 2 m n
at each position, for the gradient of all of W, and twice a step what U theta costs, for it and for U^T of the gradient:

| U                        | U theta                                  |
|--------------------------|------------------------------------------|
| identity                 | m n                                      |
| alpha                    | 2 m n                                    |
| SRHT                     | m n (log2 P + 1), P as H's Q, from dim   |
| FourierFT                | 2.5 m n log2 (m n)                       |
| any other, as Gaussian   | 2 m n dim                                |

A theta that several tensors share costs this at each of them. Nothing is counted for activations, pooling, norms, the
loss, the optimizer, sorting and building d.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

from torch import Size

from subspace import SubspaceParametrization
from subspace.embeddings import SRHT, Direction, DirectSum, Embedding, FourierFT, Identity, Scaled, Sparse
from subspace.offsets import DCT, Hadamard, Offset, SignedDCT, Zero


@dataclass(frozen=True)
class Flops:
    """FLOPs per sample, and of every step whatever its size; `dense`: the gradient of all of W, which RigL looks at."""

    forward: float = 0.0
    to_input: float = 0.0
    to_theta: float = 0.0
    step: float = 0.0
    dense: float = 0.0

    def __add__(self, other: Flops) -> Flops:
        return Flops(*map(sum, zip(astuple(self), astuple(other), strict=True)))

    @property
    def training(self) -> float:
        """A forward and a backward pass of one sample."""
        return self.forward + self.to_input + self.to_theta

    @property
    def growth(self) -> float:
        """A forward and a backward pass of one sample for the gradient of all of W."""
        return self.forward + self.to_input + self.dense


def layer(
    shape: Size, parametrization: SubspaceParametrization | None, positions: int, differentiated: bool, groups: int = 1
) -> Flops:
    """Of a weight of this shape, by the tables above; None: a plain one. differentiated: the input needs a gradient."""
    m, n, p = shape[0], shape[1:].numel(), positions
    parts: list[Offset | Embedding] = []
    products: list[Flops | None] = [_dense(m, n)]
    if parametrization is not None:
        parts = [parametrization.offset, *_summands(parametrization.embedding)]
        products = [_product(part, m, n, groups) for part in parts]
    known = [product for product in products if product is not None]
    once = sum(known, Flops()) if len(known) == len(products) else _built(parts, m, n)
    to_input = once.to_input * differentiated
    return Flops(p * once.forward, p * to_input, p * once.to_theta, once.step, 2 * m * n * p)


def transform(q: int) -> float:
    """T(q), the FLOPs of one DCT of length q or of its inverse.

    >>> transform(4)
    38.0
    """
    return 2.5 * q * math.log2(q) + 6 * (q // 2 + 1)


def _summands(U: Embedding) -> list[Embedding]:
    return [part for inner in U.embeddings for part in _summands(inner)] if isinstance(U, DirectSum) else [U]  # type: ignore[arg-type]


def _dense(m: int, n: int) -> Flops:
    return Flops(2 * m * n, 2 * m * n, 2 * m * n)


def _product(part: Offset | Embedding, m: int, n: int, groups: int) -> Flops | None:
    """At one position, by the first table; None for a part that has W built."""
    if isinstance(part, Zero):
        return Flops()
    if isinstance(part, Identity):
        return _dense(m, n)
    if isinstance(part, Sparse):
        return Flops(2 * part.dim, 2 * part.dim, 2 * part.dim)
    if groups > 1:
        return None
    q = max(m, n)
    signs = n * isinstance(part.offset if isinstance(part, Direction) else part, SignedDCT)
    if isinstance(part, DCT):
        return Flops(transform(q) + m + signs, transform(q) + n + signs)
    if isinstance(part, Hadamard):
        return Flops(_hadamard(q) + 2 * m, _hadamard(q) + n + m)
    if isinstance(part, Direction) and isinstance(part.offset, DCT):
        return Flops(transform(q) + 2 * m + signs, transform(q) + n + m + signs, 2 * m)
    if isinstance(part, Direction) and isinstance(part.offset, Hadamard):
        return Flops(_hadamard(q) + 2 * m, _hadamard(q) + n + m, 2 * m)
    return None


def _built(parts: list[Offset | Embedding], m: int, n: int) -> Flops:
    """At one position and a step, where W is built."""
    embeddings = [part for part in parts if isinstance(part, Embedding)]
    sparse = sum(U.dim for U in embeddings if isinstance(U, Sparse))
    others = [U for U in embeddings if not isinstance(U, Sparse)]
    to_theta = 2 * m * n if others else 2 * sparse
    return Flops(2 * m * n, 2 * m * n, to_theta, sparse + sum(2 * _applied(U, m * n) for U in others))


def _applied(U: Embedding, numel: int) -> float:
    """U theta once, by the second table."""
    if isinstance(U, Scaled):
        return _applied(U.embedding, numel)
    if isinstance(U, Identity):
        return numel
    if isinstance(U, SRHT):
        return numel * (_bits(U.dim) + 1)
    if isinstance(U, FourierFT):
        return 2.5 * numel * math.log2(numel)
    return 2 * numel * U.dim


def _hadamard(q: int) -> int:
    """H(q), the additions of a Walsh-Hadamard transform."""
    return _bits(q) << _bits(q)


def _bits(n: int) -> int:
    """log2 of the next power of two from n."""
    return (n - 1).bit_length()
