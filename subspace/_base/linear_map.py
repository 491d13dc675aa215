"""A linear map along the last axis as one operator, with its adjoint as its derivative in every mode.

Eagerly it is an autograd.Function, which torch.func's grad, vmap and jvp understand; in a compiled graph it is the bare
operator, which needs no break. (Dynamo traces no Function with a jvp, and torch.func no operator's own autograd.) In an
exported program, which runs without this package, it is torch's own operators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from subspace._base.exporting import is_exporting

Product = Callable[..., Tensor]


class LinearMap:
    """x, *constants -> A x, registered as `subspace::name`.

    product: computes it. like: the same on fake tensors. constants: the schema of what A depends on, as "str key".
    plain: the same for exported programs, in torch's own operators for a batch of any size; by default the product.
    `adjoint` is A^T, of the same constants; until it is set, the map is its own.
    """

    def __init__(
        self, name: str, product: Product, like: Product, constants: str = "", *, plain: Product | None = None
    ) -> None:
        self.plain = plain or product
        schema = f"(Tensor x{constants and ', '}{constants}) -> Tensor"
        self.adjoint = self
        self.operator = torch.library.custom_op(f"subspace::{name}", product, mutates_args=(), schema=schema)
        self.operator.register_fake(like)
        self.operator.register_autograd(self._backward, setup_context=self._setup_context)

    def __call__(self, x: Tensor, *constants: Any) -> Tensor:
        if is_exporting():
            return self.plain(x, *constants)
        compiling = torch.compiler.is_compiling()
        y: Tensor = self.operator(x, *constants) if compiling else _Apply.apply(x, self, constants)  # type: ignore[no-untyped-call]
        return y

    @staticmethod
    def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.constants = inputs[1:]

    def _backward(self, ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return self.adjoint.operator(gradient, *ctx.constants), *(None for _ in ctx.constants)


class _Apply(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, linear: LinearMap, constants: tuple[Any, ...]) -> Tensor:
        y: Tensor = linear.operator(x, *constants)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.linear, ctx.constants = inputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.linear.adjoint(*gradients, *ctx.constants), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        y: Tensor = ctx.linear(tangents[0], *ctx.constants)
        return y

    @staticmethod
    def vmap(
        info: object, in_dims: tuple[int, ...], x: Tensor, linear: LinearMap, constants: tuple[Any, ...]
    ) -> tuple[Tensor, int]:
        return linear(x.movedim(in_dims[0], 0), *constants), 0
