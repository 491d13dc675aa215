"""w = scale T diag(signs) + S: the form that the fast products take, for sums of a transform and a sparse part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from subspace.parametrization import SubspaceParametrization
from subspace.products import Weight
from subspace.products.form import Layout
from subspace.products.weight import Gradients, Structure

NO_TRANSFORM = Structure("zero", 0.0)


class NormalForm:
    """theta -> the `Weight` d + U theta of one parametrization, differentiable; if it has a normal form.

    What is the same at every call is found once: layers are small, and calls many.
    """

    def __init__(self, parametrization: SubspaceParametrization) -> None:
        self.parametrization = parametrization
        d, parts = parametrization.offset, parametrization.embedding.parts()
        lines = [U.direction() for U in parts]
        along = [(d, 1.0), *(line for line in lines if line is not None)]
        structures = [offset.structure() or NO_TRANSFORM for offset, _ in along]
        gains = [scale * structure.gain for (_, scale), structure in zip(along, structures, strict=True)]
        of = next((i for i, structure in enumerate(structures) if not structure.is_zero), 0)
        self.offset, self.shape, self.dims = d, tuple(d.shape), [U.dim for U in parts]
        self.fixed, moving = gains[0], iter(gains[1:])
        self.gains = [None if line is None else next(moving) for line in lines]  # None: of the sparse part
        self.sparse = next((U for U, line in zip(parts, lines, strict=True) if line is None), None)
        self.transform, held = structures[of].transform, [t for t in structures[of][2:] if t is not None]
        self.holder = along[of][0] if held else None  # of tensors, which are others on another device
        self.nowhere = torch.empty(0, dtype=torch.int64)
        self.layout = None if structures[of].signs is not None else self._layout()

    def _layout(self) -> Layout | None:
        """Where theta has the weight; None for several directions."""
        if len(self.gains) - self.gains.count(None) > 1:
            return None
        layout, start = Layout(sum(self.dims), self.fixed, 0.0, None, 0), 0
        for gain, dim in zip(self.gains, self.dims, strict=True):
            layout = layout._replace(first=start) if gain is None else layout._replace(gain=gain, at=start)
            start += dim
        return layout

    def index(self) -> Tensor:
        """The places of the values, the same tensor at every call."""
        index = None if self.sparse is None else self.sparse.support()
        if index is not None:
            return index
        self.nowhere = self.nowhere.to(self.offset.like.device)
        return self.nowhere

    def matrix(self) -> Tensor | None:
        """A T that is held; None where it is none."""
        return None if self.holder is None else cast(Structure, self.holder.structure()).matrix

    def __call__(self, theta: Tensor) -> Weight:
        self.parametrization.check_members()
        if theta.dtype != self.offset.like.dtype:
            theta = theta.to(self.offset.like.dtype)
        parts = torch.split_with_sizes(theta, self.dims) if len(self.dims) > 1 else (theta,)
        scale = values = index = signs = matrix = None
        for gain, part in zip(self.gains, parts, strict=True):
            if gain is None:
                values = part
            else:
                term = part if gain == 1 else gain * part
                scale = term if scale is None else scale + term
        if self.fixed:
            scale = theta.new_full((1,), self.fixed) if scale is None else scale + self.fixed
        elif scale is None and self.transform != "zero":
            scale = theta.new_zeros(1)  # the offset's gain is 0
        if self.sparse is not None:
            index = self.sparse.support()
        if self.holder is not None:
            _, _, signs, matrix = cast(Structure, self.holder.structure())
        if values is None or index is None:
            values, index = theta[:0], torch.empty(0, dtype=torch.int64, device=theta.device)
        return Weight(scale, values, index, self.shape, self.transform, signs, matrix)

    def needs(self, wanted: Sequence[bool]) -> tuple[bool, bool]:
        """Whether theta scales the transform, and whether it has values of S, if its gradient is wanted."""
        (theta,) = wanted
        return theta and any(gain is not None for gain in self.gains), theta and None in self.gains

    def adjoint(self, gradients: Gradients) -> tuple[Tensor | None]:
        """The gradient to theta, (dim,), of those to scale and values; None where they are."""
        _, scale, values = gradients
        parts = [
            values if gain is None else scale if gain == 1 or scale is None else gain * scale for gain in self.gains
        ]
        found = [part for part in parts if part is not None]
        return (torch.cat(found) if len(found) > 1 else found[0] if found else None,)


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
