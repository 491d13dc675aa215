"""Doping (Thakker et al., "Doping: a technique for extreme compression of LSTM models using sparse structured additive
matrices", MLSys 2021): W = B (x) C + S, a small Kronecker product and a sparse matrix trained beside it.

With C fixed this is d + U theta, d = 0 and U an `embeddings.Kronecker` beside a `Sparse` one: `recipes.doped`. The
paper trains both factors, which is bilinear and outside that law: here S is a subspace, and the product another of
torch's parametrizations on top of it. `subspace.summary` counts B and C beside theta, and `subspace.save` takes them
along, but a plain model has no place to load them into. The paper anneals S from dense; here its places are fixed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Size, Tensor, nn
from torch.nn.utils import parametrize

from subspace._base.key import Key
from subspace._base.qualified import owner_of
from subspace._base.selection import Selection, targets
from subspace.embeddings import Sparse
from subspace.methods.budgets import entries, uniform
from subspace.methods.recipe import Start, register_all, zeros
from subspace.offsets import Zero

LEAST = 8  # entries of C, so that no block of B (x) C is in the range of a sparse S


class KroneckerProduct(nn.Module):
    """A parametrization of torch's on top of another one: S -> B (x) C + S, with B and C trained.

    Args:
        shape: Of the weight, whose matrix has the first axis as its rows.
        rows: The rows of B, which divide those of the matrix.
        columns: The columns of B, which divide those of the matrix.
        key: Where B and C start, both normal with the same variance.
        std: The standard deviation of the entries of B (x) C at the start.
        dropout: Co-matrix dropout: the share of forward passes in training in which one of the product and S, either as
            often, is left out, so that neither leans on the other.
    """

    B: nn.Parameter
    C: nn.Parameter

    def __init__(self, shape: Size, rows: int, columns: int, *, key: Key, std: float, dropout: float = 0.0) -> None:
        super().__init__()
        sides = {"B": (rows, columns), "C": (shape[0] // rows, shape[1:].numel() // columns)}
        for name, (p, q) in sides.items():
            numbers = torch.from_numpy(key.fold(name).normal(p * q, dtype="float32")).reshape(p, q)
            self.register_parameter(name, nn.Parameter(math.sqrt(std) * numbers))
        self.dropout = dropout

    def forward(self, sparse: Tensor) -> Tensor:
        product = torch.kron(self.B, self.C).reshape(sparse.shape)
        drawn = float(torch.rand(())) if self.training and self.dropout else 1.0
        if drawn < self.dropout / 2:
            return product
        return sparse if drawn < self.dropout else product + sparse


def dope(  # noqa: PLR0913
    model: nn.Module,
    *,
    density: float | None = None,
    dim: int | None = None,
    seed: int = 0,
    share: float = 0.5,
    dropout: float = 0.0,
    include: Selection | None = None,
    exclude: Selection | None = None,
) -> nn.Module:
    """Doping with both factors trained: every weight is B (x) C + S, S sparse at random and 0 at the start.

    Args:
        model: Its tensors are registered in place.
        density: The numbers of all B, C and S as a fraction in (0, 1] of the chosen weights; or give dim.
        dim: How many numbers they have; every tensor gets the same density, and B and C the most that fit into `share`
            of its numbers. A tensor for which no two factors fit has S alone, at the weights kept.
        seed: Of everything random, folded with each tensor's qualified name.
        share: The part of a tensor's numbers that B and C may take, in (0, 1).
        dropout: Of co-matrix dropout, in [0, 1]; see `KroneckerProduct`.
        include: Which tensors, as of `targets`.
        exclude: Which tensors not, as of `targets`.

    Returns:
        The model.

    Raises:
        TypeError: If not exactly one of density and dim is given.
        ValueError: If an argument is out of range; the model is then as it was.
    """
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout must be in [0, 1], got {dropout}")
    weights = {name: target.weight for name, target in targets(model, include, exclude).items()}
    counts = even_counts(weights, density, dim)
    starts: dict[str, Start] = {}
    products = {}
    for name, w in weights.items():
        rows, columns = w.shape[0], w.shape[1:].numel()
        key, U = Key(seed).fold(name), Key(seed).fold(name).fold("U")
        if (shape := largest_factor(rows, columns, most_of(share, counts[name]), both=True)) is None:
            starts[name] = Zero(w), Sparse(w, counts[name], key=U), None
            continue
        p, q = shape
        kept = counts[name] - p * q - w.numel() // (p * q)
        starts[name] = Zero(w), Sparse(w, kept, key=U), zeros(w, kept)
        std = float(w.detach().std(correction=0))
        products[name] = KroneckerProduct(w.shape, p, q, key=key, std=std, dropout=dropout).to(w.device, w.dtype)
    register_all(model, starts)
    for name, product in products.items():
        parametrize.register_parametrization(*owner_of(model, name), product)
    return model


def even_counts(weights: Mapping[str, Tensor], density: float | None, dim: int | None) -> dict[str, int]:
    """How many numbers every tensor gets, the same density in each; TypeError and ValueError as of recipes."""
    total = entries(sum(w.numel() for w in weights.values()), density, dim)
    return dict(zip(weights, uniform([w.shape for w in weights.values()], total), strict=True))


def most_of(share: float, count: int) -> int:
    """The most numbers that the factors may have; ValueError for a share that is none."""
    if not 0 < share < 1:
        raise ValueError(f"share must be in (0, 1), got {share}")
    return int(share * count)


def largest_factor(rows: int, columns: int, most: int, both: bool = False) -> tuple[int, int] | None:
    """The shape of the largest B of at most so many numbers, nearest to the matrix's shape among equally large ones.

    C has at least 8 entries. both: it counts too. None where no B is so small.

    >>> largest_factor(512, 128, 1310, both=True), largest_factor(16, 16, 40), largest_factor(16, 16, 0)
    ((64, 16), (4, 8), None)
    """

    def fits(size: int) -> bool:
        of_C = rows * columns // size
        return of_C >= LEAST and size + both * of_C <= most

    shapes = [(p, q) for p in divisors(rows) for q in divisors(columns) if fits(p * q)]
    return max(shapes, key=lambda shape: (math.prod(shape), -_unlike(shape, rows, columns)), default=None)


def _unlike(shape: tuple[int, int], rows: int, columns: int) -> float:
    """How far the proportions of B are from the matrix's."""
    return abs(math.log(shape[0] * columns / (shape[1] * rows)))


def divisors(n: int) -> Iterator[int]:
    """Those of n, rising."""
    return (each for each in range(1, n + 1) if n % each == 0)
