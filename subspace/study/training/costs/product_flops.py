"""The FLOPs of a product with W = d + U theta, part by part, by what is sparse or fast. A multiply-add counts as 2.

A weight W of m rows and n columns meets a sample at p positions: 1 for a linear layer; the output's pixels, padding
included, for a convolution. With q = max(m, n) and T(q) = 2.5 q log2 q + 6 (q // 2 + 1), a real FFT by the usual count
of Frigo and Johnson (2005) with its twiddle factors, and H(q) = Q log2 Q additions, Q the next power of two from q, the
products cost, at each position:

| part                  | forward      | to the input | to theta |
|-----------------------|--------------|--------------|----------|
| identity: dense       | 2 m n        | 2 m n        | 2 m n    |
| sparse, s entries     | 2 s          | 2 s          | 2 s      |
| pretrained d          | 2 m n        | 2 m n        | 0        |
| DCT                   | T(q) + m     | T(q) + n     | 0        |
| alpha DCT             | T(q) + 2 m   | T(q) + n + m | 2 m      |
| either, signed        | n more       | n more       | the same |
| Hadamard              | H(q) + 2 m   | H(q) + n + m | 0        |
| alpha Hadamard        | H(q) + 2 m   | H(q) + n + m | 2 m      |
| blocks of either      | Q(q) + q + m | Q(q) + q + n | 0        |
| Haar                  | 4 (q - 1) + m | 4 (q - 1) + n | 0       |
| signed permutation    | 2 q          | 2 q          | 0        |
| alpha times these     | m more       | m more       | 2 m      |
| a number for each row | as alpha d   | as alpha d   | 2 m      |
| low rank, r x s       | 2 (n s + r s + m r) | 2 (n s + r s) | 2 (m r + r s) |
| Kronecker, B r x s, C p x q | 2 (n p + r s p) | 2 (n p + r s p) | 2 (n p + r s p) |
| circulant, blocks b   | F(n) + C + F(m) | F(n) + C  | F(m) + C |
| FourierFT, s numbers  | E(m) + E(n) + 4 s | E(m) + E(n) + 4 s | 4 s |
| s coefficients        | B(n) + 2 s + B(m) | B(n) + 2 s | B(m) + 2 s |
| any other d or U      | 2 m n, once  | 2 m n, once  | below    |

Q(q) is the blocks' T, or their H and scale. F(n) is a real FFT of length b, 2.5 b log2 b, for each n / b, and C the
complex products between, 8 (b // 2 + 1) m n / b^2. E(n) is 2.5 n log2 n, of a linear layer. B(n) is the basis's
transform of n numbers: T(n), H and scale of powers of two, 4 (n - 1) for Haar's, 2 n^2 for singular vectors. A low rank
and a Kronecker product count so where that is less than 2 m n.

The m and n are additions to the other part's result, and products with alpha or with Hadamard's scale. Any other d or U
has W built, and so has a DCT or Hadamard part of a grouped convolution, where every group would need transforms of its
own: one dense product in all. A sparse U then adds 2 s to theta at each position and s a step. Any other U takes 2 m n
at each position, for the gradient of all of W, and twice a step what U theta costs, for it and for U^T of the gradient:

| U                        | U theta                                  |
|--------------------------|------------------------------------------|
| identity                 | m n                                      |
| alpha                    | 2 m n                                    |
| SRHT                     | m n (log2 P + 1), P as H's Q, from dim   |
| FourierFT, convolutions  | 2.5 m n log2 (m n)                       |
| Hashed                   | m n + dim                                |
| all coefficients         | m B(n) + n B(m)                          |
| any other, as Gaussian   | 2 m n dim                                |

A theta that several tensors share costs this at each of them. Nothing is counted for activations, pooling, norms, the
loss, the optimizer, sorting and building d.
"""

from __future__ import annotations

from torch import Size

from subspace import SubspaceParametrization
from subspace.embeddings import Embedding
from subspace.products.flops import Flops


def layer(
    shape: Size, parametrization: SubspaceParametrization | None, positions: int, differentiated: bool, groups: int = 1
) -> Flops:
    """Of a weight of this shape, by the tables above; None: a plain one. differentiated: the input needs a gradient."""
    m, n, p = shape[0], shape[1:].numel(), positions
    once = Flops(2 * m * n, 2 * m * n, 2 * m * n)
    if parametrization is not None:
        parts = parametrization.embedding.parts()
        products = [U.flops(groups) for U in parts]
        if parametrization.column is None:  # else d and alpha d are one product
            products.append(parametrization.offset.flops(groups))
        known = [product for product in products if product is not None]
        once = sum(known, Flops()) if len(known) == len(products) else _built(parts, m, n)
    to_input = once.to_input * differentiated
    return Flops(p * once.forward, p * to_input, p * once.to_theta, once.step, 2 * m * n * p)


def _built(parts: list[Embedding], m: int, n: int) -> Flops:
    """At one position and a step, where W is built."""
    sparse = sum(U.dim for U in parts if U.support() is not None)
    others = [U for U in parts if U.support() is None]
    to_theta = 2 * m * n if others else 2 * sparse
    return Flops(2 * m * n, 2 * m * n, to_theta, sparse + sum(2 * U.build_flops() for U in others))
