"""What laws draw: tensors from keys, embeddings with a dim that their shape admits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from subspace import Key
from subspace.products import LINEAR, Geometry, Weight, conv, linear
from subspace.products.choice.selection import possible
from subspace.products.problem import Problem
from tests.support.cases import EMBEDDINGS, OFFSETS, SHAPES

each_offset = pytest.mark.parametrize("case", OFFSETS, ids=lambda case: case.name)
each_embedding = pytest.mark.parametrize("case", EMBEDDINGS, ids=lambda case: case.name)
seeds = st.integers(0, 2**64)
shapes = st.sampled_from(SHAPES)
fractions = st.floats(0, 1)


def numbers(seed: int, *shape: int) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.from_numpy(Key(seed).fold("test").normal(torch.Size(shape).numel())).reshape(shape)


def offset(case: Any, shape: tuple[int, ...], seed: int = 0) -> Any:
    """The case's offset for a weight of that shape (of two axes at least, if it needs fans)."""
    like = numbers(seed, *(shape if len(shape) > 1 or not case.fans else (*shape, 1)))
    return case.make(like, Key(seed))


def embedding(case: Any, shape: tuple[int, ...], fraction: float = 0.5, seed: int = 0) -> Any:
    """The case's embedding, its dim that fraction of the way from 1 to numel."""
    like = numbers(seed, *shape)
    return case.make(like, 1 + round(fraction * (like.numel() - 1)), Key(seed))


def matrix(U: Any) -> Tensor:
    """U as a dense (numel, dim) matrix, one column after the other."""
    basis = torch.eye(U.dim, dtype=torch.float64)
    return torch.stack([U(column).reshape(-1) for column in basis], dim=1)


def multiply(x: Tensor, w: Weight, geometry: Geometry = LINEAR, route: str = "auto") -> Tensor:
    """`products.linear` or `products.conv`, whichever the geometry is of."""
    return conv(x, w, geometry, route) if geometry.kernel else linear(x, w, route)


def routes(x: Tensor, w: Weight, geometry: Geometry = LINEAR) -> list[str]:
    """The names of the routes that can compute a product."""
    return [route.name for route in possible(Problem.of(x, w, geometry))]
