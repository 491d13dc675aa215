"""Block subsampled randomised Hadamard transform: a dense U of +-of^-1/2 that is never stored.

U = (P / of)^1/2 R [H S_0; H S_1; ...], cut after numel rows: H the orthonormal Walsh-Hadamard matrix of length P, the
next power of two from dim, and R and S_b diagonals of random signs. theta is padded with zeros to P; sign j of S_b is
sign b dim + j of the key's stream, and sign i of R sign i of that of its "w". Signs on the side of w are those of Ailon
and Chazelle, "The fast Johnson-Lindenstrauss transform and approximate nearest neighbors" (SIAM J. Comput. 39, 2009):
with them |U^T w| is as for a Gaussian U whatever w is, a constant, too. Those on theta's side do the same for U theta.

Of a last block with too few rows, its first rows are kept, or, where other tensors share theta (`of` beyond numel),
rows at random, those that the key's "rows" draws from P: first rows do not tell theta_j from theta_{j + 2^i}.

A product costs O(numel log dim) and holds a few blocks of signs at a time, in the backward pass too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from subspace._base.dtypes import at_least_float32
from subspace._base.exporting import as_constant
from subspace._base.key import Key
from subspace._base.linear_map import LinearMap, Product
from subspace._base.plug_in import require_key
from subspace._base.transforms import fwht
from subspace.embeddings.base import Embedding

BLOCK = 1 << 18  # entries transformed at a time, so that they stay in cache


class SRHT(Embedding):
    """U of entries +-of^-1/2, so that every column has length (numel / of)^1/2: 1 unless `of` is given.

    The columns are exactly orthogonal where numel is a multiple of P, the next power of two from dim; elsewhere the
    squares of the singular values are within P / numel of 1, as long as numel >= P. U is injective for every dim up to
    numel: all leading minors of H differ from 0.

    With `of`, these are the rows of one tensor in a U of that many rows for several tensors, injective with a
    probability that falls short of 1 only for a dim close to `of`.

    Args:
        like: The weight, or any floating-point tensor of its shape, dtype and device; its values are not kept.
        dim: The length of theta.
        key: Where the signs come from.
        of: The rows of a U that several tensors share; numel of `like` by default.

    >>> U = SRHT(torch.empty(8, 3), 5, key=Key(0))
    >>> torch.allclose(U.adjoint(U(torch.arange(5.0))), torch.arange(5.0), atol=1e-5)
    True
    """

    def __init__(self, like: Tensor, dim: int, *, key: Key | None = None, of: int | None = None) -> None:
        super().__init__(like, dim, key=require_key(key, self), of=of)
        self._stream = str(self.key)  # ahead of time: torch.compile cannot trace it

    def _constants(self) -> tuple[str, int, int, int]:
        return self._stream, self.shape.numel(), self.dim, self.of

    def forward(self, theta: Tensor) -> Tensor:
        return _U(theta, *self._constants()).reshape(self.shape)

    def adjoint(self, weight: Tensor) -> Tensor:
        return _U_T(weight.reshape(-1), *self._constants())

    def coordinates(self, weight: Tensor) -> Tensor:
        numel = self.shape.numel()
        if numel % _length(self.dim):
            return super().coordinates(weight)
        return self.adjoint(weight) * (self.of / numel)

    def build_flops(self) -> float:
        return self.shape.numel() * float((self.dim - 1).bit_length() + 1)


def _length(dim: int) -> int:
    return 1 << (dim - 1).bit_length()


Piece = tuple[slice, slice | Tensor, Tensor, Tensor, Tensor, Tensor]


def _pieces(x: Tensor, stream: str, numel: int, dim: int, of: int) -> Iterator[Piece]:
    """Some blocks after one another: rows of U, which of the blocks' rows those are, signs of both sides, two buffers.

    The signs are those of w, (rows,), and of theta, (blocks, dim). The buffers, (len(x), blocks, P), are the same every
    time: fresh ones would cost more than the arithmetic.
    """
    key, length = Key.parse(stream), _length(dim)
    blocks, step = -(-numel // length), max(1, BLOCK // (len(x) * length))
    buffers = x.new_empty(2, len(x) * min(step, blocks) * length)
    for first in range(0, blocks, step):
        count = min(step, blocks - first)
        start, stop = first * length, min((first + count) * length, numel)
        kept: slice | Tensor = slice(stop - start)
        if of > numel and (few := (stop - start) % length):
            whole = (count - 1) * length
            chosen = whole + torch.from_numpy(key.fold("rows").distinct(length, few))
            kept = torch.cat([torch.arange(whole), chosen]).to(x.device)
        of_theta = torch.from_numpy(key.signs(count * dim, first * dim)).reshape(count, dim).to(x.device)
        of_w = torch.from_numpy(key.fold("w").signs(stop - start, start)).to(x.device)
        one, other = buffers[:, : len(x) * count * length].reshape(2, len(x), count, length)
        yield slice(start, stop), kept, of_w, of_theta, one, other


def _factors(length: int, like: Tensor) -> list[Tensor]:
    """H of at most 32 x 32, whose Kronecker product is that of that length; none where a product may round to TF32."""
    if like.device.type != "cpu":
        return []
    bits = (length - 1).bit_length()
    levels = -(-bits // 5)
    sizes = [1 << (bits * (level + 1) // levels - bits * level // levels) for level in range(levels)]
    h = {size: fwht(torch.eye(size, dtype=like.dtype)) for size in set(sizes)}
    return [h[size] for size in sizes]


def _hadamard(x: Tensor, spare: Tensor, factors: list[Tensor]) -> Tensor:
    """fwht(x), by matrix products in a fifth of the time, if there are factors; then it is in x or in spare."""
    if not factors:
        return fwht(x)
    inner = 1
    for h in factors:
        n = len(h)
        if inner == 1:
            torch.mm(x.view(-1, n), h, out=spare.view(-1, n))
        else:
            y = x.view(-1, n, inner)
            torch.bmm(h.expand(len(y), n, n), y, out=spare.view(-1, n, inner))
        x, spare, inner = spare, x, inner * n
    return x


def _product(theta: Tensor, stream: str, numel: int, dim: int, of: int) -> Tensor:
    batch, length = theta.shape[:-1], _length(dim)
    scaled = theta.reshape(batch.numel(), 1, dim).to(at_least_float32(theta.dtype)) * math.sqrt(length / of)
    out, factors = theta.new_empty(batch.numel(), numel), _factors(length, scaled)
    for rows, kept, of_w, of_theta, x, spare in _pieces(scaled, stream, numel, dim, of):
        torch.mul(of_theta, scaled, out=x[..., :dim])
        x[..., dim:] = 0
        out[:, rows] = _hadamard(x, spare, factors).flatten(1)[:, kept] * of_w
    return out.reshape(*batch, numel)


def _adjoint(weight: Tensor, stream: str, numel: int, dim: int, of: int) -> Tensor:
    batch, length = weight.shape[:-1], _length(dim)
    flat = weight.reshape(batch.numel(), numel)
    out = torch.zeros(len(flat), dim, dtype=at_least_float32(weight.dtype), device=weight.device)
    factors = _factors(length, out)
    for rows, kept, of_w, of_theta, x, spare in _pieces(out, stream, numel, dim, of):
        x.zero_().flatten(1)[:, kept] = flat[:, rows].to(x.dtype) * of_w
        out += _hadamard(x, spare, factors)[..., :dim].mul_(of_theta).sum(1)
    return (out * math.sqrt(length / of)).to(weight.dtype).reshape(*batch, dim)


def _plain(theta: Tensor, stream: str, numel: int, dim: int, of: int) -> Tensor:
    """`_product` with all blocks at once, and the signs as constants of the program."""
    length, device = _length(dim), theta.device
    of_theta = _signs(stream, -(-numel // length) * dim, device).reshape(-1, dim)
    padded = F.pad(theta.unsqueeze(-2).to(at_least_float32(theta.dtype)) * of_theta, (0, length - dim))
    rows = fwht(padded).flatten(-2).index_select(-1, _rows(stream, numel, dim, of, device))
    return (rows * _signs(stream, numel, device, "w") * math.sqrt(length / of)).to(theta.dtype)


def _plain_adjoint(weight: Tensor, stream: str, numel: int, dim: int, of: int) -> Tensor:
    """`_adjoint`, as `_plain`."""
    length, device = _length(dim), weight.device
    blocks = -(-numel // length)
    signed = weight.to(at_least_float32(weight.dtype)) * _signs(stream, numel, device, "w")
    rows = signed.new_zeros(*weight.shape[:-1], blocks * length)
    rows = rows.index_copy(-1, _rows(stream, numel, dim, of, device), signed)
    rows = rows.reshape(*weight.shape[:-1], blocks, length)
    theta = (fwht(rows)[..., :dim] * _signs(stream, blocks * dim, device).reshape(-1, dim)).sum(-2)
    return (theta * math.sqrt(length / of)).to(weight.dtype)


@as_constant
def _signs(stream: str, n: int, device: torch.device, side: str = "") -> Tensor:
    """The first n signs of theta's side, or with "w" of that one: (n,)."""
    key = Key.parse(stream)
    return torch.from_numpy((key.fold(side) if side else key).signs(n)).to(device)


@as_constant
def _rows(stream: str, numel: int, dim: int, of: int, device: torch.device) -> Tensor:
    """Which of the rows of all blocks are kept: (numel,)."""
    length = _length(dim)
    rows, few = torch.arange(numel), numel % length
    if of > numel and few:
        rows[numel - few :] = numel - few + torch.from_numpy(Key.parse(stream).fold("rows").distinct(length, few))
    return rows.to(device)


def _map(name: str, product: Product, plain: Product, length: Callable[[int, int], int]) -> LinearMap:
    def like(x: Tensor, stream: str, numel: int, dim: int, of: int) -> Tensor:
        return x.new_empty(*x.shape[:-1], length(numel, dim))

    return LinearMap(name, product, like, "str stream, SymInt numel, SymInt dim, SymInt of", plain=plain)


_U = _map("srht", _product, _plain, lambda numel, dim: numel)
_U_T = _map("srht_adjoint", _adjoint, _plain_adjoint, lambda numel, dim: dim)
_U.adjoint, _U_T.adjoint = _U_T, _U
