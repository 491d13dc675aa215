"""w = scale T diag(signs) + S: the form that the fast products take, for sums of a transform and a sparse part."""

from __future__ import annotations

import torch
from torch import Tensor

from subspace.parametrization import SubspaceParametrization
from subspace.products import Weight
from subspace.products.weight import Structure

NO_TRANSFORM = Structure("zero", 0.0)


class NormalForm:
    """theta -> the `Weight` d + U theta of one parametrization, differentiable; if it has a normal form."""

    def __init__(self, parametrization: SubspaceParametrization) -> None:
        self.offset, self.parts = parametrization.offset, parametrization.embedding.parts()
        self.dims = [U.dim for U in self.parts]

    def __call__(self, theta: Tensor) -> Weight:
        theta = theta.to(self.offset.like.dtype)
        fixed = self.offset.structure() or NO_TRANSFORM
        scale: Tensor | None = None
        transform = fixed
        values, index = theta[:0], None
        split = theta.split(self.dims) if len(self.dims) > 1 else (theta,)  # type: ignore[no-untyped-call]
        for U, part in zip(self.parts, split, strict=True):
            along = U.direction()
            if along is None:
                values, index = part, U.support()
            else:
                transform = along.offset.structure() or NO_TRANSFORM
                gain = along.scale * transform.gain
                term = part if gain == 1 else gain * part
                scale = term if scale is None else scale + term
        if fixed.gain:
            scale = theta.new_full((1,), fixed.gain) if scale is None else scale + fixed.gain
        if scale is None and not transform.is_zero:
            scale = theta.new_zeros(1)  # the offset's gain is 0
        if index is None:
            index = torch.empty(0, dtype=torch.int64, device=theta.device)
        return Weight(scale, values, index, tuple(self.offset.shape), transform.transform, transform.signs)


def why_no_normal_form(parametrization: SubspaceParametrization) -> str | None:
    """Why a parametrization has no normal form, in a few words; None if it has one."""
    parts = parametrization.embedding.parts()
    if other := [U for U in parts if U.direction() is None and U.support() is None]:
        return f"{other[0].label()} has no fast product"
    along = [parametrization.offset, *(line.offset for U in parts if (line := U.direction()))]
    structures = [d.structure() for d in along]
    if None in structures:
        return f"{along[structures.index(None)].label()} has no fast product"
    transforms = [s for s in structures if s is not None and not s.is_zero]
    if not all(s.has_transform_of(transforms[0]) for s in transforms):
        return "more than one transform"
    return "more than one sparse part" if sum(U.support() is not None for U in parts) > 1 else None
