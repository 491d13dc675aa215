"""w = scale T + S: the form that the fast products take, for every sum of DCT, Hadamard and sparse parts."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from subspace.embeddings import Direction, DirectSum, Embedding, Sparse
from subspace.offsets import DCT, Hadamard, Offset, Zero
from subspace.parametrization import SubspaceParametrization

TRANSFORMS: dict[type[Offset], str] = {Zero: "zero", DCT: "dct", Hadamard: "hadamard"}


NormalForm = tuple[str, Tensor | None, Tensor, Tensor]
"""(transform, scale, values, index): "dct", "hadamard" or "zero"; (1,), None for "zero"; S holds values (k,) at index."""


def obstacle(parametrization: SubspaceParametrization) -> str | None:
    """Why it has no normal form, in a few words; None if it has one."""
    parts = summands(parametrization.embedding)
    for U in parts:
        if not isinstance(U, Direction | Sparse):
            return f"{U.label()} has no fast product"
    along = [parametrization.offset, *(U.offset for U in parts if isinstance(U, Direction))]
    for d in along:
        if type(d) not in TRANSFORMS:
            return f"{d.label()} has no fast product"
    if len({type(d) for d in along} - {Zero}) > 1:
        return "more than one transform"
    return "more than one sparse part" if sum(isinstance(U, Sparse) for U in parts) > 1 else None


def normal_form(parametrization: SubspaceParametrization, theta: Tensor) -> NormalForm:
    """That of d + U theta, differentiable with respect to theta: (dim,); there must be no `obstacle`."""
    parts = summands(parametrization.embedding)
    transform, scale = TRANSFORMS[type(parametrization.offset)], None
    if transform != "zero":
        scale = theta.new_full((1,), parametrization.offset.gain)  # type: ignore[arg-type]
    values, index = theta[:0], torch.empty(0, dtype=torch.int64, device=theta.device)
    split = theta.split([U.dim for U in parts]) if len(parts) > 1 else [theta]  # type: ignore[no-untyped-call]
    for U, part in zip(parts, split, strict=True):
        if isinstance(U, Sparse):
            values, index = part, U.index
        else:
            d = cast("DCT", cast("Direction", U).offset)
            transform, along = TRANSFORMS[type(d)], part if d.gain == 1 else d.gain * part
            scale = along if scale is None else scale + along
    return transform, scale, values, index


def summands(embedding: Embedding) -> list[Embedding]:
    """U_1, U_2, ... of a direct sum, also of one of direct sums; else U itself."""
    if not isinstance(embedding, DirectSum):
        return [embedding]
    return [part for inner in embedding.embeddings for part in summands(cast("Embedding", inner))]
