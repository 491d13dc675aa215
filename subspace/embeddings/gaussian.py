"""Dense Gaussian embedding (Li et al., "Measuring the intrinsic dimension of objective landscapes", ICLR 2018).

Entry (i, j) of U is word i dim + j of the key's stream as a normal number, over of^1/2. Stored, a product reads
numel dim numbers. Regenerated, it draws them again, about 40 ns each on the CPU, and never holds more than a block of
rows, in the backward pass too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from subspace._base.dtypes import at_least_float32
from subspace._base.key import Key
from subspace._base.linear_map import LinearMap, Product
from subspace._base.plug_in import require_key
from subspace.embeddings.base import Embedding

STORED = 1 << 29  # entries up to which U is stored unless told otherwise: 2 GiB in float32
BLOCK = 1 << 20  # entries drawn at a time


class Gaussian(Embedding):
    """U i.i.d. N(0, 1 / numel), so that E|U theta|^2 = |theta|^2.

    With `of`, these are the rows of one tensor in a U of that many rows for several tensors, of variance 1 / of.

    Args:
        like: The weight, or any floating-point tensor of its shape, dtype and device; its values are not kept.
        dim: The length of theta.
        key: Where the entries come from.
        of: The rows of a U that several tensors share; numel of `like` by default.
        stored: Whether U is held, which costs memory, or drawn again at every product, which costs time; by default it
            is held up to 2^29 entries.

    >>> U = Gaussian(torch.empty(1000, 50), 20, key=Key(0))
    >>> round(float(U(torch.ones(20)).norm() ** 2 / 20), 1)
    1.0
    """

    def __init__(
        self, like: Tensor, dim: int, *, key: Key | None = None, of: int | None = None, stored: bool | None = None
    ) -> None:
        super().__init__(like, dim, key=require_key(key, self), of=of)
        self._stream = str(self.key)  # ahead of time: torch.compile cannot trace it
        self.stored = like.numel() * dim <= STORED if stored is None else stored
        self.rebuild()

    def rebuild(self) -> None:
        self.matrix = self._drawn() if self.stored and not self.like.is_meta else None

    def _drawn(self) -> Tensor:
        matrix = self.like.new_empty(self.shape.numel(), self.dim)
        for start, block in _blocks(matrix, *self._constants()):
            matrix[start : start + len(block)] = block
        return matrix

    def _constants(self) -> tuple[str, int, int, int]:
        return self._stream, self.shape.numel(), self.dim, self.of

    def forward(self, theta: Tensor) -> Tensor:
        if self.matrix is not None:
            return torch.mv(self.matrix, theta).reshape(self.shape)
        return _U(theta, *self._constants()).reshape(self.shape)

    def adjoint(self, weight: Tensor) -> Tensor:
        if self.matrix is not None:
            return torch.mv(self.matrix.T, weight.reshape(-1))
        return _U_T(weight.reshape(-1), *self._constants())

    def column_norms(self) -> Tensor:
        """|U_j| for every column: (dim,) float64 on the CPU."""
        squares = torch.zeros(self.dim, dtype=torch.float64)
        like = self.like.new_empty(0, device="cpu")
        drawn = (block for _, block in _blocks(like, *self._constants()))
        for block in drawn if self.matrix is None else torch.split(self.matrix, _rows(self.dim)):
            squares += block.cpu().double().square().sum(0)
        return squares.sqrt()


def _rows(dim: int) -> int:
    return max(1, BLOCK // dim)


def _blocks(like: Tensor, stream: str, numel: int, dim: int, of: int) -> Iterator[tuple[int, Tensor]]:
    """(first row, rows of U) after one another, in at least float32 on like's device."""
    parsed, dtype = Key.parse(stream), at_least_float32(like.dtype)
    for start in range(0, numel, _rows(dim)):
        count = min(_rows(dim), numel - start)
        values = parsed.normal(count * dim, start * dim, dtype=str(dtype).removeprefix("torch."))
        yield start, torch.from_numpy(values).mul_(of**-0.5).reshape(count, dim).to(like.device)


def _product(theta: Tensor, stream: str, numel: int, dim: int, of: int) -> Tensor:
    out = theta.new_empty(*theta.shape[:-1], numel)
    for start, block in _blocks(theta, stream, numel, dim, of):
        out[..., start : start + len(block)] = theta.to(block.dtype) @ block.T
    return out


def _adjoint(weight: Tensor, stream: str, numel: int, dim: int, of: int) -> Tensor:
    out = torch.zeros(*weight.shape[:-1], dim, dtype=at_least_float32(weight.dtype), device=weight.device)
    for start, block in _blocks(weight, stream, numel, dim, of):
        out += weight[..., start : start + len(block)].to(block.dtype) @ block
    return out.to(weight.dtype)


def _map(name: str, product: Product, length: Callable[[int, int], int]) -> LinearMap:
    def like(x: Tensor, stream: str, numel: int, dim: int, of: int) -> Tensor:
        return x.new_empty(*x.shape[:-1], length(numel, dim))

    return LinearMap(name, product, like, "str stream, SymInt numel, SymInt dim, SymInt of", plain=_refuse)


def _refuse(x: Tensor, *constants: object) -> Tensor:
    raise ValueError(
        "U must be stored to be exported, got a Gaussian that is drawn at every product: give stored=True, or call "
        "materialize(model) first"
    )


_U = _map("gaussian", _product, lambda numel, dim: numel)
_U_T = _map("gaussian_adjoint", _adjoint, lambda numel, dim: dim)
_U.adjoint, _U_T.adjoint = _U_T, _U
