"""The coefficients of weights in a basis, scored, pruned and moved as weights are: generalised lottery tickets.

Alabdulmohsin et al., "A generalized lottery ticket hypothesis" (2021, arXiv 2107.06825). With w = B c, B orthonormal,
the magnitude is |c| = |B^T w|, the gradient to c is B^T g, and SNIP's score |c B^T g|; budgets count coefficients.
Everything here that chooses places takes a basis in this way and in no other. Without one, the coefficients are the
weights, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from subspace._base.layout import STANDARD, Layout
from subspace._base.ties import Tie, owned_by
from subspace.embeddings import Basis, Embedding, Sparse, Transform

BasisRule = Callable[[Tensor], Transform]  # of a weight, as `embeddings.DCT`
Bases = Mapping[str, Transform]  # by qualified name; the weights themselves for a name that is not there


class _OnDemand(Mapping[str, Transform]):
    """Bases made when they are first asked for, of the weights as they were at the start."""

    def __init__(self, weights: Mapping[str, Tensor], rule: BasisRule, layouts: Mapping[str, Layout]) -> None:
        self.weights, self.rule = {name: weight.detach() for name, weight in weights.items()}, rule
        self.layouts = layouts
        self.made: dict[str, Transform] = {}

    def __getitem__(self, name: str) -> Transform:
        if name not in self.made:
            weight = self.weights[name]
            basis = self.rule(weight)
            if not isinstance(basis, Transform):
                raise TypeError(f"basis must make a Transform for {name}, got {type(basis).__name__}")
            if basis.shape != weight.shape:
                raise ValueError(
                    f"basis must have the shape of {name}, {tuple(weight.shape)}, got {tuple(basis.shape)}"
                )
            self.made[name] = basis.in_layout(self.layouts.get(name, STANDARD))
        return self.made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


def bases_of(weights: Mapping[str, Tensor], basis: BasisRule | Bases | None, layouts: Mapping[str, Layout]) -> Bases:
    """The basis of each weight as it is now, one for each of its matrices; those that there are already stay.

    TypeError for what is no rule.
    """
    if basis is None or isinstance(basis, Mapping):
        return basis or {}
    if not callable(basis):
        raise TypeError(f"basis must be a function of a weight, such as embeddings.DCT, got {basis!r}")
    return _OnDemand(weights, basis, layouts)


def analyse(weight: Tensor, basis: Transform | None) -> Tensor:
    """The coefficients of a weight, in its shape."""
    return weight if basis is None else basis.adjoint(weight).reshape(weight.shape)


def synthesise(coefficients: Tensor, basis: Transform | None) -> Tensor:
    """The weight of these coefficients."""
    return coefficients if basis is None else basis(coefficients.reshape(-1))


def embedding(sparse: Sparse, basis: Transform | None) -> Embedding:
    """The U of coefficients at the places of a sparse one."""
    return sparse if basis is None else Basis(basis, sparse)


@contextmanager
def differentiable(model: nn.Module, weights: Mapping[str, nn.Parameter], bases: Bases) -> Iterator[dict[str, Tensor]]:
    """Let the model compute its weights from coefficients inside the block; yields these, in the weights' shapes.

    They require gradients, and are the weights themselves where there is no basis.
    """
    leaves: dict[str, Tensor] = dict(weights)
    owners = {name: owned_by(model, weight) for name, weight in weights.items()}
    try:
        for name, weight in weights.items():
            if (basis := bases.get(name)) is not None:
                leaves[name] = analyse(weight.detach(), basis).clone().requires_grad_(True)
                alike = torch.empty_like(weight, requires_grad=False)  # in memory, too, as products are rounded by it
                _put(owners[name], alike.copy_(synthesise(leaves[name], basis)))
        yield leaves
    finally:
        for name, weight in weights.items():
            if leaves[name] is not weight:
                _put(owners[name], weight)


def _put(owners: Sequence[Tie], tensor: Tensor) -> None:
    """Let a tensor, which need not be a Parameter, be that of these modules."""
    for module, name in owners:
        module._parameters[name] = tensor  # type: ignore[assignment]
        if isinstance(module, nn.RNNBase):  # which keeps a list of its own
            module._init_flat_weights()
