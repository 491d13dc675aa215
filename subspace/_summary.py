"""What a model trains and stores: per tensor, in total, and besides theta."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from subspace._base.text import table
from subspace._structured.forward import products_of, unstructured_reason
from subspace.checkpoint.description import TensorTable, encode
from subspace.parametrization import subspaces
from subspace.products import status

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Row:
    """One tensor: its qualified name, d and U, and what it trains and stores.

    route: as asked of `structured`, None where the weight is built; plain_because: why it has to be, if it has to.
    trained_bytes is theta's; stored_bytes adds what a checkpoint holds of U. A theta shared by several tensors is
    counted in the first one's bytes and in no other's.
    """

    name: str
    shape: tuple[int, ...]
    offset: str
    embedding: str
    dim: int
    density: float
    trained_bytes: int
    stored_bytes: int
    route: str | None = None
    plain_because: str | None = None


@dataclass(frozen=True)
class Summary:
    """The rows and their totals; `str()` is a table.

    weights: how many the subspaces cover. dim: the length of all thetas, each counted once; alpha: how many of these
    scale an offset. beside: the other numbers that train, by kind ("bias", "norm", "other").
    """

    rows: tuple[Row, ...]
    weights: int
    dim: int
    alpha: int
    trained_bytes: int
    stored_bytes: int
    beside: dict[str, int]

    @property
    def density(self) -> float:
        """(dim - alpha) / weights."""
        return (self.dim - self.alpha) / self.weights if self.weights else 0.0

    def __str__(self) -> str:
        total = Row(
            "total", (), "", "", self.dim, self.dim / max(self.weights, 1), self.trained_bytes, self.stored_bytes
        )
        lines = [HEAD, *(_cells(row) for row in (*self.rows, total))]
        lines[-1][1] = f"{self.weights:,} weights"
        text = table(lines, ALIGN)
        alpha = [f"alpha: {self.alpha:,} of the total dim scale an offset"] if self.alpha else []
        beside = ", ".join(f"{count:,} {kind}" for kind, count in self.beside.items()) or "nothing"
        end = [text[1], text[-1], *alpha, f"trains beside theta: {beside}", *self._products()]
        return "\n".join([*text[:-1], *end])

    def _products(self) -> list[str]:
        plain = [row for row in self.rows if row.route is None]
        if len(plain) == len(self.rows):
            return []
        first = f"structured: {len(self.rows) - len(plain)} of {len(self.rows)}; compiled kernels: {status()}"
        return [first, *(f"plain: {row.name}, {row.plain_because or 'not asked'}" for row in plain)]


HEAD = ["tensor", "shape", "offset", "embedding", "dim", "density", "trained", "stored"]
ALIGN = "<<<<>>>>"


def summary(model: nn.Module) -> Summary:
    """Count what a model trains and stores.

    Args:
        model: With any number of registered subspaces.

    Returns:
        A row for each registered tensor, and totals; `str()` is a table.

    >>> from subspace import recipes
    >>> print(summary(recipes.dctps(nn.Sequential(nn.Linear(100, 10)), density=0.01)))  # doctest: +NORMALIZE_WHITESPACE
    tensor    shape          offset  embedding                dim  density  trained  stored
    ---------------------------------------------------------------------------------------
    0.weight  10 x 100       DCT     Direction(DCT) + Sparse   11   1.100%     44 B    44 B
    ---------------------------------------------------------------------------------------
    total     1,000 weights                                    11   1.100%     44 B    44 B
    alpha: 1 of the total dim scale an offset
    trains beside theta: 10 bias
    """
    rows, alpha, held = [], 0, TensorTable()
    thetas: dict[int, Tensor] = {}
    for name, space in subspaces(model):
        theta, d, U = space.theta, space.parametrization.offset, space.parametrization.embedding
        mine = 0 if id(theta) in thetas else theta.nbytes
        thetas[id(theta)] = theta
        already = _nbytes(held)
        with contextlib.suppress(ValueError):  # of what no checkpoint takes
            encode(U, held)
        chosen = _nbytes(held) - already
        shape = tuple(d.shape)
        products = products_of(space.module) if space.name == "weight" else None
        route = None if products is None else products.route
        counts = U.dim, U.dim / d.shape.numel(), mine, mine + chosen
        rows.append(Row(name, shape, d.label(), U.label(), *counts, route, unstructured_reason(space)))
        alpha += U.alphas()
    return Summary(
        tuple(rows),
        weights=sum(math.prod(row.shape) for row in rows),
        dim=sum(theta.numel() for theta in thetas.values()),
        alpha=alpha,
        trained_bytes=sum(row.trained_bytes for row in rows),
        stored_bytes=sum(row.stored_bytes for row in rows),
        beside=_beside(model, set(thetas)),
    )


def _beside(model: nn.Module, thetas: set[int]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    seen = set(thetas)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                counts["norm" if isinstance(module, NORMS) else "bias" if "bias" in name else "other"] += (
                    parameter.numel()
                )
    return dict(counts)


def _nbytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _cells(row: Row) -> list[str]:
    shape = " x ".join(map(str, row.shape))
    sizes = [_size(row.trained_bytes), _size(row.stored_bytes)]
    return [row.name, shape, row.offset, row.embedding, f"{row.dim:,}", f"{row.density:.3%}", *sizes]


def _size(nbytes: int) -> str:
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if nbytes >= scale:
            return f"{nbytes / scale:.2f} {unit}"
    return f"{nbytes} B"
