"""Dense Gaussian embedding (Li et al., "Measuring the intrinsic dimension of objective landscapes", ICLR 2018).

Entry (i, j) of U is word i dim + j of the key's stream as a normal number, over of^1/2. Stored, a product reads
numel dim numbers. Regenerated, it draws them again, about 40 ns each on the CPU, and never holds more than a block of
rows, in the backward pass too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from subspace.embeddings.base import Embedding
from subspace.fixed import required, wide
from subspace.random import Key

STORED = 1 << 29  # entries up to which U is stored unless told otherwise: 2 GiB in float32
BLOCK = 1 << 20  # entries drawn at a time


class Gaussian(Embedding):
    """U i.i.d. N(0, 1 / numel), so that E|U theta|^2 = |theta|^2; `stored` chooses between memory and time.

    With `of`, these are the rows of one tensor in a U of that many rows for several tensors, of variance 1 / of.

    >>> U = Gaussian(torch.empty(1000, 50), 20, key=Key(0))
    >>> round(float(U(torch.ones(20)).norm() ** 2 / 20), 1)
    1.0
    """

    def __init__(
        self, like: Tensor, dim: int, *, key: Key | None = None, of: int | None = None, stored: bool | None = None
    ) -> None:
        super().__init__(like, dim, key=required(key, self), of=of)
        self.stored = like.numel() * dim <= STORED if stored is None else stored
        self.rebuild()

    def rebuild(self) -> None:
        self.matrix = self._drawn() if self.stored and not self.like.is_meta else None

    def _drawn(self) -> Tensor:
        matrix = self.like.new_empty(self.shape.numel(), self.dim)
        for start, block in _blocks(matrix, *self._map()):
            matrix[start : start + len(block)] = block
        return matrix

    def _map(self) -> tuple[str, int, int, int]:
        return str(self.key), self.shape.numel(), self.dim, self.of

    def forward(self, theta: Tensor) -> Tensor:
        if self.matrix is not None:
            return torch.mv(self.matrix, theta).reshape(self.shape)
        w: Tensor = torch.ops.subspace.gaussian(theta, *self._map())
        return w.reshape(self.shape)

    def adjoint(self, weight: Tensor) -> Tensor:
        if self.matrix is not None:
            return torch.mv(self.matrix.T, weight.reshape(-1))
        theta: Tensor = torch.ops.subspace.gaussian_adjoint(weight.reshape(-1), *self._map())
        return theta

    def column_norms(self) -> Tensor:
        """|U_j| for every column: (dim,) float64 on the CPU."""
        squares = torch.zeros(self.dim, dtype=torch.float64)
        drawn = (block for _, block in _blocks(squares, *self._map()))
        for block in drawn if self.matrix is None else torch.split(self.matrix, _rows(self.dim)):
            squares += block.cpu().double().square().sum(0)
        return squares.sqrt()


def _rows(dim: int) -> int:
    return max(1, BLOCK // dim)


def _blocks(like: Tensor, key: str, numel: int, dim: int, of: int) -> Iterator[tuple[int, Tensor]]:
    """(first row, rows of U) after one another, in at least float32 on like's device."""
    parsed, dtype = Key.parse(key), wide(like.dtype)
    for start in range(0, numel, _rows(dim)):
        count = min(_rows(dim), numel - start)
        values = parsed.normal(count * dim, start * dim, dtype=str(dtype).removeprefix("torch."))
        yield start, torch.from_numpy(values).mul_(of**-0.5).reshape(count, dim).to(like.device)


def _product(theta: Tensor, key: str, numel: int, dim: int, of: int) -> Tensor:
    out = theta.new_empty(*theta.shape[:-1], numel)
    for start, block in _blocks(theta, key, numel, dim, of):
        out[..., start : start + len(block)] = theta.to(block.dtype) @ block.T
    return out


def _adjoint(weight: Tensor, key: str, numel: int, dim: int, of: int) -> Tensor:
    out = torch.zeros(*weight.shape[:-1], dim, dtype=wide(weight.dtype), device=weight.device)
    for start, block in _blocks(weight, key, numel, dim, of):
        out += weight[..., start : start + len(block)].to(block.dtype) @ block
    return out.to(weight.dtype)


def _operator(name: str, product: Callable[..., Tensor], adjoint: str, length: Callable[[int, int], int]) -> None:
    """Register `subspace::name`: one way through U, along the last axis, with the other way as its backward."""
    operator = torch.library.custom_op(
        f"subspace::{name}",
        product,
        mutates_args=(),
        schema="(Tensor x, str key, SymInt numel, SymInt dim, SymInt of) -> Tensor",
    )

    def fake(x: Tensor, key: str, numel: int, dim: int, of: int) -> Tensor:
        return x.new_empty(*x.shape[:-1], length(numel, dim))

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.map = inputs[1:]

    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return getattr(torch.ops.subspace, adjoint)(gradient, *ctx.map), None, None, None, None

    def vmap(_: object, in_dims: tuple[int, ...], x: Tensor, *u: Any) -> tuple[Tensor, int]:
        return operator(x.movedim(in_dims[0], 0), *u), 0

    operator.register_fake(fake)
    operator.register_autograd(backward, setup_context=setup_context)
    operator.register_vmap(vmap)


_operator("gaussian", _product, "gaussian_adjoint", lambda numel, dim: numel)
_operator("gaussian_adjoint", _adjoint, "gaussian", lambda numel, dim: dim)
