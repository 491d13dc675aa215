"""w = (scale T + S) diag(s): the form that the fast products take, for every sum of DCT, Hadamard and sparse parts."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from subspace.embeddings import Direction, DirectSum, Embedding, Sparse
from subspace.offsets import DCT, Hadamard, Offset, SignedDCT, Zero
from subspace.parametrization import SubspaceParametrization
from subspace.products import Weight

TRANSFORMS: dict[type[Offset], str] = {Zero: "zero", DCT: "dct", SignedDCT: "dct", Hadamard: "hadamard"}


class NormalForm:
    """That of one parametrization: theta: (dim,) -> `Weight`, differentiable.

    `turned` is the input that it takes with them: s times that of w, for a `SignedDCT`. There must be no `obstacle`.
    """

    def __init__(self, parametrization: SubspaceParametrization) -> None:
        d = parametrization.offset
        self.shape = tuple(d.shape)
        self.parts = summands(parametrization.embedding)
        self.dims = [U.dim for U in self.parts]
        along = [d, *(U.offset for U in self.parts if isinstance(U, Direction))]
        (self.transform,) = {TRANSFORMS[type(d)] for d in along} - {"zero"} or {"zero"}
        self.signed = next((d for d in along if isinstance(d, SignedDCT)), None)
        self.fixed: float = 0.0 if isinstance(d, Zero) else cast("DCT", d).gain

    def __call__(self, theta: Tensor) -> Weight:
        scale = theta.new_full((1,), self.fixed) if self.fixed else None
        values, index = theta[:0], None
        split = theta.split(self.dims) if len(self.dims) > 1 else (theta,)  # type: ignore[no-untyped-call]
        for U, part in zip(self.parts, split, strict=True):
            if isinstance(U, Sparse):
                values, index = part, U.index
                if self.signed is not None:  # W = (scale T + S diag(s)) diag(s), as s s = 1
                    channels = index // self.signed.shape[2:].numel() % self.signed.shape[1:2].numel()
                    values = values * self.signed.signs.to(values.dtype)[channels]
            else:
                gain = cast("DCT", cast("Direction", U).offset).gain
                along = part if gain == 1 else gain * part
                scale = along if scale is None else scale + along
        if scale is None and self.transform != "zero":
            scale = theta.new_zeros(1)  # the offset's gain is 0
        if index is None:
            index = torch.empty(0, dtype=torch.int64, device=theta.device)
        return Weight(scale, values, index, self.shape, self.transform)

    def turned(self, x: Tensor, axis: int) -> Tensor:
        """x with the signs of its channels, which are on that axis, those of every group after one another."""
        if self.signed is None:
            return x
        signs = self.signed.signs.to(x.dtype)
        after = (1 for _ in x.shape[axis:][1:])
        return x * signs.repeat(x.shape[axis] // len(signs)).reshape(-1, *after)


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
    if len({(type(d), d.key) for d in along if not isinstance(d, Zero)}) > 1:
        return "more than one transform"
    return "more than one sparse part" if sum(isinstance(U, Sparse) for U in parts) > 1 else None


def summands(embedding: Embedding) -> list[Embedding]:
    """U_1, U_2, ... of a direct sum, also of one of direct sums; else U itself."""
    if not isinstance(embedding, DirectSum):
        return [embedding]
    return [part for inner in embedding.embeddings for part in summands(cast("Embedding", inner))]
