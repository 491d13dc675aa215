"""THE lists: every law runs over every entry. A new offset or embedding is one line here; a test insists on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from subspace import Key, Layout, embeddings, offsets
from subspace._base.frames import random_frame
from subspace._base.layout import STANDARD
from subspace.embeddings import (
    SRHT,
    Basis,
    Circulant,
    ColumnScale,
    Direction,
    DirectSum,
    Embedding,
    FourierFT,
    Given,
    Hashed,
    Identity,
    Kronecker,
    LowRank,
    RowScale,
    Scaled,
    Singular,
    Sparse,
    TinyLoRA,
)
from subspace.embeddings.fourier_ft import frequency_count
from subspace.offsets import (
    DCT,
    BlockDCT,
    BlockHadamard,
    Haar,
    Hadamard,
    Offset,
    PerMatrix,
    Pretrained,
    RankOne,
    SignedDCT,
    SignedHadamard,
    SignedPermutation,
    Zero,
)

T = TypeVar("T")
S = TypeVar("S")


@dataclass(frozen=True)
class OffsetCase:
    """make(like, key).

    fans: it needs at least two axes. held: it is made from like's values, which no key rebuilds. orders: how many
    tensors it holds of a number for each input, or output, or input channel.
    """

    name: str
    make: Callable[[Tensor, Key], Offset]
    fans: bool = False
    held: bool = False
    orders: int = 0


@dataclass(frozen=True)
class EmbeddingCase:
    """make(like, dim, key) of that dim.

    free: it takes any dim. orthonormal: U^T U = I. scaled: E|U theta|^2 = |theta|^2. random: it depends on the key.
    held: it is made from values that no key rebuilds.
    """

    name: str
    make: Callable[[Tensor, int, Key], Embedding]
    free: bool = True
    orthonormal: bool = False
    scaled: bool = False
    random: bool = True
    held: bool = False


OFFSETS = [
    OffsetCase("zero", lambda like, key: Zero(like)),
    OffsetCase("dct", lambda like, key: DCT(like)),
    OffsetCase("dct-gain", lambda like, key: DCT(like, gain=1.5)),
    OffsetCase("signed-dct", lambda like, key: SignedDCT(like, key=key), orders=1),
    OffsetCase("signed-dct-gain", lambda like, key: SignedDCT(like, key=key, gain=0.7), orders=1),
    OffsetCase("hadamard", lambda like, key: Hadamard(like)),
    OffsetCase("hadamard-gain", lambda like, key: Hadamard(like, gain=0.7)),
    OffsetCase("rank-one", lambda like, key: RankOne(like, key=key)),
    OffsetCase("rank-one-gain", lambda like, key: RankOne(like, key=key, gain=1.5)),
    OffsetCase("pretrained", lambda like, key: Pretrained(like), held=True),
    OffsetCase("kaiming", lambda like, key: offsets.Gaussian(like, key=key), fans=True),
    OffsetCase("kaiming-out-kept", lambda like, key: offsets.Gaussian(like, key=key, fan="out", keep=True), fans=True),
    OffsetCase(
        "xavier-uniform",
        lambda like, key: offsets.Gaussian(like, key=key, fan="average", distribution="uniform"),
        fans=True,
    ),
    OffsetCase("signed-hadamard", lambda like, key: SignedHadamard(like, key=key, gain=0.7), orders=1),
    OffsetCase("haar", lambda like, key: Haar(like, gain=0.7)),
    OffsetCase("block-hadamard", lambda like, key: BlockHadamard(like, key=key, block=4), orders=3),
    OffsetCase("block-dct", lambda like, key: BlockDCT(like, key=key, block=3, gain=0.7), orders=3),
    OffsetCase("per-matrix", lambda like, key: _per_matrix(Haar(like))),
    OffsetCase("per-matrix-drawn", lambda like, key: _per_matrix(RankOne(like, key=key))),
    OffsetCase("signed-permutation", lambda like, key: SignedPermutation(like, key=key, gain=0.7), orders=2),
]


def _gaussian(stored: bool) -> Callable[[Tensor, int, Key], Embedding]:
    return lambda like, dim, key: embeddings.Gaussian(like, dim, key=key, stored=stored)


def _sum(scale: float) -> Callable[[Tensor, int, Key], Embedding]:
    def make(like: Tensor, dim: int, key: Key) -> Embedding:
        alpha = Direction(DCT(like), scale)
        return alpha if dim == 1 else DirectSum([alpha, Sparse(like, dim - 1, key=key)])

    return make


def _index(like: Tensor, dim: int, key: Key) -> Embedding:
    return Sparse(like, index=torch.from_numpy(key.distinct(like.numel(), dim)))


def _scaled(like: Tensor, dim: int, key: Key) -> Embedding:
    scale = torch.from_numpy(key.fold("scale").uniform(max(dim, 0))).to(like) + 0.5
    return Scaled(Sparse(like, dim, key=key), scale)


def _fourier(scale: float | None) -> Callable[[Tensor, int, Key], Embedding]:
    def make(like: Tensor, dim: int, key: Key) -> Embedding:
        return FourierFT(like, min(dim, frequency_count(*STANDARD.fans(like.shape))), key=key, scale=scale)

    return make


def _several_fourier(like: Tensor, dim: int, key: Key) -> Embedding:
    layout = _several(like)
    most = layout.matrices(like.shape) * frequency_count(*layout.fans(like.shape))
    return FourierFT(like, min(dim, most), key=key, layout=layout)


def _fourier_index(like: Tensor, dim: int, key: Key) -> Embedding:
    most = frequency_count(*STANDARD.fans(like.shape))
    return FourierFT(like, index=torch.from_numpy(key.distinct(most, min(max(dim, 1), most))))


def _half(n: int) -> int:
    return (n + 1) // 2


def _low_rank(like: Tensor, dim: int, key: Key) -> Embedding:
    n_out, n_in = STANDARD.fans(like.shape)
    return LowRank(like, _half(n_out), _half(n_in), key=key)


def _lora_fa(like: Tensor, dim: int, key: Key) -> Embedding:
    return LowRank(like, None, _half(STANDARD.fans(like.shape)[1]), key=key)


def _lora_xs(like: Tensor, dim: int, key: Key) -> Embedding:
    rank = _half(min(STANDARD.fans(like.shape)))
    return LowRank(like, rank, rank, offset=_dense(like, key))


def _several(like: Tensor) -> Layout:
    return Layout(blocks=2 if like.ndim and like.shape[0] % 2 == 0 else 1)


def _several_low_rank(like: Tensor, dim: int, key: Key) -> Embedding:
    n_out, n_in = _several(like).fans(like.shape)
    return LowRank(like, _half(n_out), _half(n_in), key=key, layout=_several(like))


def _several_lora_xs(like: Tensor, dim: int, key: Key) -> Embedding:
    rank = _half(min(_several(like).fans(like.shape)))
    return LowRank(like, rank, rank, offset=_dense(like, key), layout=_several(like))


def _several_circulant(like: Tensor, dim: int, key: Key) -> Embedding:
    return Circulant(like, math.gcd(*_several(like).fans(like.shape)), layout=_several(like))


def _turned_row_scale(like: Tensor, dim: int, key: Key) -> Embedding:
    return RowScale(DCT(like), layout=STANDARD if like.ndim == 2 else Layout((1,), (0,)))


def _column_scale(like: Tensor, dim: int, key: Key) -> Embedding:
    return ColumnScale(SignedDCT(like, key=Key(7)))


def _turned_column_scale(like: Tensor, dim: int, key: Key) -> Embedding:
    return ColumnScale(DCT(like), scale=4.0, layout=STANDARD if like.ndim == 2 else Layout((1,), (0,)))


def _shared_row_scale(like: Tensor, dim: int, key: Key) -> Embedding:
    return RowScale(DCT(like), scale=1.0, of=like.numel() + 5)


def _lora_given(like: Tensor, dim: int, key: Key) -> Embedding:
    n_out, n_in = STANDARD.fans(like.shape)
    frames = [random_frame(key.fold(str(n)), n, _half(n)) for n in (n_out, n_in)]
    return LowRank(like, *frames)


def _dense(like: Tensor, key: Key) -> Offset:
    return offsets.Gaussian(like, key=key) if like.ndim > 1 else DCT(like)


def _tiny(like: Tensor, dim: int, key: Key) -> Embedding:
    rank = _half(min(STANDARD.fans(like.shape)))
    return TinyLoRA(like, max(1, min(dim, rank**2 // 2)), rank=rank, key=key)


def _circulant(scale: float | None) -> Callable[[Tensor, int, Key], Embedding]:
    return lambda like, dim, key: Circulant(like, math.gcd(*STANDARD.fans(like.shape)), scale=scale)


def _kronecker(layout: Callable[[Tensor], Layout]) -> Callable[[Tensor, int, Key], Embedding]:
    def largest(n: int) -> int:
        return next((n // factor for factor in range(2, n) if n % factor == 0), 1)

    def make(like: Tensor, dim: int, key: Key) -> Embedding:
        n_out, n_in = layout(like).fans(like.shape)
        return Kronecker(like, largest(n_out), largest(n_in), key=key, layout=layout(like))

    return make


def _given(like: Tensor, dim: int, key: Key) -> Embedding:
    return Given(like, torch.from_numpy(key.normal(like.numel() * dim)).reshape(-1, dim))


def _basis(transform: Callable[[Tensor], Embedding]) -> Callable[[Tensor, int, Key], Embedding]:
    return lambda like, dim, key: Basis(transform(like), Sparse(like, dim, key=key))


def _per_matrix(offset: Offset) -> Offset:
    return PerMatrix(offset, layout=_several(offset.like.new_empty(()).expand(offset.shape)))


EMBEDDINGS = [
    EmbeddingCase("identity", lambda like, dim, key: Identity(like), free=False, orthonormal=True, random=False),
    EmbeddingCase("sparse", lambda like, dim, key: Sparse(like, dim, key=key), orthonormal=True),
    EmbeddingCase("sparse-index", _index, orthonormal=True),
    EmbeddingCase("gaussian-stored", _gaussian(True), scaled=True),
    EmbeddingCase("gaussian-drawn", _gaussian(False), scaled=True),
    EmbeddingCase("srht", lambda like, dim, key: SRHT(like, dim, key=key), scaled=True),
    EmbeddingCase("hashed", lambda like, dim, key: Hashed(like, dim, key=key), scaled=True),
    EmbeddingCase("low-rank", _low_rank, free=False, orthonormal=True, scaled=True),
    EmbeddingCase("lora-fa", _lora_fa, free=False, orthonormal=True, scaled=True),
    EmbeddingCase("lora-xs", _lora_xs, free=False, orthonormal=True, scaled=True),
    EmbeddingCase("low-rank-several", _several_low_rank, free=False, orthonormal=True, scaled=True),
    EmbeddingCase("lora-xs-several", _several_lora_xs, free=False, orthonormal=True, scaled=True),
    EmbeddingCase("row-scale-turned", _turned_row_scale, False, True, True, random=False),
    EmbeddingCase("circulant-several", _several_circulant, False, True, True, random=False),
    EmbeddingCase("tiny-lora", _tiny, free=False, scaled=True),
    EmbeddingCase("row-scale", lambda like, dim, key: RowScale(DCT(like)), False, True, True, random=False),
    EmbeddingCase("row-scale-ia3", lambda like, dim, key: RowScale(DCT(like), scale=1.0), free=False, random=False),
    EmbeddingCase("row-scale-shared", _shared_row_scale, False, random=False),
    EmbeddingCase("column-scale", _column_scale, False, True, True, random=False),
    EmbeddingCase("column-scale-turned", _turned_column_scale, False, random=False),
    EmbeddingCase("lora-given", _lora_given, free=False, orthonormal=True, scaled=True, held=True),
    EmbeddingCase("circulant", _circulant(None), False, True, True, random=False),
    EmbeddingCase("circulant-c3a", _circulant(1.0), free=False, random=False),
    EmbeddingCase("kronecker", _kronecker(lambda like: STANDARD), False, True, True),
    EmbeddingCase("kronecker-several", _kronecker(_several), False, True, True),
    EmbeddingCase("given", _given, free=False, orthonormal=True, scaled=True, held=True),
    EmbeddingCase("dct", lambda like, dim, key: embeddings.DCT(like), False, True, True, random=False),
    EmbeddingCase("haar", lambda like, dim, key: embeddings.Haar(like), False, True, True, random=False),
    EmbeddingCase("hadamard", lambda like, dim, key: embeddings.Hadamard(like), False, True, True, random=False),
    EmbeddingCase("singular", lambda like, dim, key: Singular(_dense(like, key)), False, True, True),
    EmbeddingCase("basis-dct", _basis(embeddings.DCT), orthonormal=True, scaled=True),
    EmbeddingCase("basis-haar", _basis(lambda like: embeddings.Haar(like, over="filters")), True, True, True),
    EmbeddingCase("basis-singular", _basis(lambda like: Singular(_dense(like, Key(5)))), True, True, True),
    EmbeddingCase("basis-identity", _basis(Identity), orthonormal=True),
    EmbeddingCase("fourier-ft", _fourier(None), free=False, orthonormal=True, scaled=True),
    EmbeddingCase("fourier-ft-peft", _fourier(150.0), free=False),
    EmbeddingCase("fourier-ft-several", _several_fourier, free=False, orthonormal=True, scaled=True),
    EmbeddingCase("fourier-ft-index", _fourier_index, free=False, orthonormal=True, scaled=True),
    EmbeddingCase("direction", lambda like, dim, key: Direction(DCT(like)), free=False, random=False),
    EmbeddingCase("direct-sum", _sum(1.0)),
    EmbeddingCase("direct-sum-scaled", _sum(-2.5)),
    EmbeddingCase("scaled", _scaled),
]

SHAPES = [(7,), (1, 1), (5, 8), (8, 5), (12, 3), (6, 4, 3), (6, 2, 3, 3), (8, 1, 3, 3), (4, 6, 1, 1), (4, 3, 2, 2, 2)]


@dataclass(frozen=True)
class ModuleCase:
    """A module, the tensor to parametrize, and what calls it."""

    name: str
    make: Callable[[], nn.Module]
    tensor: str
    call: Callable[[nn.Module], Tensor]


class Affine(nn.Module):
    """Somebody's module, with raw Parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(3, 4, 5))
        self.shift = nn.Parameter(torch.randn(()))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bi,ijk->bjk", x, self.table) + self.shift


def _on(*shape: int) -> Callable[[nn.Module], Tensor]:
    x = torch.linspace(-1, 1, torch.Size(shape).numel(), dtype=torch.float64).reshape(shape).sin()
    return lambda module: module(x)


def _attend(module: nn.Module) -> Tensor:
    x = torch.linspace(-1, 1, 48, dtype=torch.float64).reshape(3, 2, 8).cos()
    output: Tensor = module(x, x, x)[0]
    return output


def _recur(module: nn.Module) -> Tensor:
    x = torch.linspace(-1, 1, 30, dtype=torch.float64).reshape(3, 2, 5).cos()
    output: Tensor = module(x)[0]
    return output


def each_with_one(ones: Iterable[T], others: Iterable[S]) -> list[tuple[T, S]]:
    """Pairs of which each of both is in one at least: where all pairs would show nothing else."""

    def place(i: int, n: int) -> int:
        return (i + i // n) % n  # from one place further in every round, so that no two always meet

    ones, others = list(ones), list(others)
    count = range(max(len(ones), len(others)))
    return [(ones[place(i, len(ones))], others[place(i, len(others))]) for i in count]


def rest_slow(cases: Iterable[Any], quick: Collection[Any]) -> list[Any]:
    """All cases, for `parametrize`, of which those that are not among the quick are slow."""

    def values(case: Any) -> tuple[Any, ...]:
        return case if isinstance(case, tuple) else (case,)

    return [pytest.param(*values(case), marks=() if case in quick else pytest.mark.slow) for case in cases]


# d and U meet in a sum alone: every offset with one embedding, and every embedding with one offset; and some more pairs
EACH_ONCE = [*((offset, EMBEDDINGS[1]) for offset in OFFSETS), *((OFFSETS[1], embedding) for embedding in EMBEDDINGS)]
EACH_WITH_ONE = each_with_one(OFFSETS, EMBEDDINGS)  # where it does not matter which
EACH_WITH_SEVERAL = EACH_ONCE + [
    (offset, embedding)
    for i, offset in enumerate(OFFSETS)
    for j, embedding in enumerate(EMBEDDINGS)
    if (i + j) % 6 == 0 and (offset, embedding) not in EACH_ONCE
]

MODULES = [
    ModuleCase("linear", lambda: nn.Linear(8, 5), "weight", _on(3, 8)),
    ModuleCase("linear-bias", lambda: nn.Linear(8, 5), "bias", _on(3, 8)),
    ModuleCase("conv1d", lambda: nn.Conv1d(4, 6, 3, stride=2), "weight", _on(2, 4, 9)),
    ModuleCase("conv2d", lambda: nn.Conv2d(4, 6, 3, padding=1, dilation=2), "weight", _on(2, 4, 7, 7)),
    ModuleCase("conv2d-groups", lambda: nn.Conv2d(4, 6, 3, groups=2, bias=False), "weight", _on(2, 4, 5, 5)),
    ModuleCase("conv2d-depthwise", lambda: nn.Conv2d(4, 4, 3, groups=4), "weight", _on(2, 4, 5, 5)),
    ModuleCase("conv3d", lambda: nn.Conv3d(2, 3, 2), "weight", _on(1, 2, 3, 3, 3)),
    ModuleCase("conv-transpose1d", lambda: nn.ConvTranspose1d(4, 6, 3), "weight", _on(2, 4, 5)),
    ModuleCase("conv-transpose2d", lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), "weight", _on(2, 4, 5, 5)),
    ModuleCase("conv-transpose3d", lambda: nn.ConvTranspose3d(2, 2, 2), "weight", _on(1, 2, 2, 2, 2)),
    ModuleCase("embedding", lambda: nn.Embedding(9, 4), "weight", lambda m: m(torch.tensor([1, 3, 3, 8]))),
    ModuleCase("layer-norm", lambda: nn.LayerNorm(8), "weight", _on(3, 8)),
    ModuleCase("batch-norm", lambda: nn.BatchNorm2d(4), "weight", _on(2, 4, 3, 3)),
    ModuleCase("group-norm", lambda: nn.GroupNorm(2, 4), "weight", _on(2, 4, 3, 3)),
    ModuleCase("attention", lambda: nn.MultiheadAttention(8, 2), "in_proj_weight", _attend),
    ModuleCase("lstm", lambda: nn.LSTM(5, 6, num_layers=2), "weight_hh_l0", _recur),
    ModuleCase("gru", lambda: nn.GRU(5, 6, bidirectional=True), "weight_ih_l0_reverse", _recur),
    ModuleCase("raw", Affine, "table", _on(2, 3)),
    ModuleCase("raw-scalar", Affine, "shift", _on(2, 3)),
]
