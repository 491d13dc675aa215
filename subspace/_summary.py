"""What a model trains and stores: per tensor, in total, and besides theta."""

from __future__ import annotations

import contextlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from subspace._base.kinds import is_norm, is_table
from subspace._base.qualified import named_modules
from subspace._base.selection import Owner, tensor_owners, why_not_trained
from subspace._base.text import html, table
from subspace._base.ties import ties
from subspace._structured.forward import products_of, unstructured_reason
from subspace.checkpoint.description import TensorTable, encode
from subspace.parametrization import subspaces
from subspace.products import status


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
class LeftOut:
    """A tensor that is not registered, and why, in a few words.

    why: "bias", "norm" or "embedding"; of a weight matrix "frozen", "not floating-point" or "not chosen"; of a tensor
    that is another's "tied to NAME"; "parametrized otherwise"; of a Parameter of two axes or more of which nothing says
    how it is a matrix "no known layout" (`set_layouts` can say); or "other".
    """

    name: str
    shape: tuple[int, ...]
    why: str


@dataclass(frozen=True)
class Summary:
    """The rows and their totals; `str()` is a table, and so is what a notebook shows.

    weights: how many the subspaces cover. dim: the length of all thetas, each counted once; alpha: how many of these
    scale an offset. beside: the other numbers that train, by kind ("bias", "norm", "other"). left_out: what is not
    registered; the table names what is no bias or norm.
    """

    rows: tuple[Row, ...]
    weights: int
    dim: int
    alpha: int
    trained_bytes: int
    stored_bytes: int
    beside: dict[str, int]
    left_out: tuple[LeftOut, ...] = ()

    @property
    def density(self) -> float:
        """(dim - alpha) / weights."""
        return (self.dim - self.alpha) / self.weights if self.weights else 0.0

    def __str__(self) -> str:
        text = table(self._lines(), ALIGN)
        return "\n".join([*text[:-1], text[1], text[-1], *self._notes()])

    def _repr_html_(self) -> str:
        return html(self._lines(), self._notes())

    def _lines(self) -> list[list[str]]:
        total = Row(
            "total", (), "", "", self.dim, self.dim / max(self.weights, 1), self.trained_bytes, self.stored_bytes
        )
        lines = [HEAD, *(_cells(row) for row in (*self.rows, total))]
        lines[-1][1] = f"{self.weights:,} weights"
        return lines

    def _notes(self) -> list[str]:
        alpha = [f"alpha: {self.alpha:,} of the total dim scale an offset"] if self.alpha else []
        beside = ", ".join(f"{count:,} {kind}" for kind, count in self.beside.items()) or "nothing"
        names: dict[str, list[str]] = defaultdict(list)
        for each in self.left_out:
            if each.why not in ("bias", "norm"):
                names[each.why].append(each.name)
        left = [f"left out, {why}: {_some(these)}" for why, these in names.items()]
        return [*alpha, f"trains beside theta: {beside}", *left, *self._products()]

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
        alpha += 0 if id(theta) in thetas else U.alphas()  # a theta that is shared counts once
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
    return Summary(
        tuple(rows),
        weights=sum(math.prod(row.shape) for row in rows),
        dim=sum(theta.numel() for theta in thetas.values()),
        alpha=alpha,
        trained_bytes=sum(row.trained_bytes for row in rows),
        stored_bytes=sum(row.stored_bytes for row in rows),
        beside=_beside(model, set(thetas)),
        left_out=tuple(_left_out(model)),
    )


def _left_out(model: nn.Module) -> Iterator[LeftOut]:
    owners, first = tensor_owners(model), dict[int, str]()
    shapes = {name: space.shape for name, space in subspaces(model)}
    names = {(owner.module, owner.name): name for name, owner in owners.items()}
    for prefix, module in named_modules(model):
        for name, place in ties(module).items():
            source = names.get(place, "")
            yield LeftOut(f"{prefix}.{name}".lstrip("."), tuple(shapes.get(source, ())), f"tied to {source}")
    for name, owner in owners.items():
        if name not in shapes and not (owner.weight is not None and nn.parameter.is_lazy(owner.weight)):
            known = name if owner.weight is None else first.setdefault(id(owner.weight), name)
            shape = tuple(getattr(owner.module, owner.name).shape)
            yield LeftOut(name, shape, _why(owner, len(shape)) if known == name else f"tied to {known}")


def _why(owner: Owner, axes: int) -> str:
    """Why a tensor is not registered."""
    module, name, layout, weight = owner
    if weight is None:
        return "parametrized otherwise"
    if layout is not None:
        return why_not_trained(weight) or "not chosen"
    if "bias" in name:
        return "bias"
    if is_norm(module):
        return "norm"
    if is_table(module):
        return "embedding"
    return "no known layout" if axes > 1 else "other"


def _beside(model: nn.Module, thetas: set[int]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    seen = set(thetas)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                counts["norm" if is_norm(module) else "bias" if "bias" in name else "other"] += parameter.numel()
    return dict(counts)


def _nbytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _cells(row: Row) -> list[str]:
    shape = " x ".join(map(str, row.shape))
    sizes = [_size(row.trained_bytes), _size(row.stored_bytes)]
    return [row.name, shape, row.offset, row.embedding, f"{row.dim:,}", f"{row.density:.3%}", *sizes]


def _size(nbytes: int) -> str:
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if nbytes >= scale:
            return f"{nbytes / scale:.2f} {unit}"
    return f"{nbytes} B"
