"""What a method costs, counted on a real forward pass of the real model: FLOPs and bytes.

A multiply-add counts as 2 FLOPs. A weight W of m rows and n columns meets a sample at p positions (1 for a linear
layer; the output's pixels, padding included, for a convolution), which hooks measure. With q = max(m, n) and T(q) =
2.5 q log2 q + 6 (q // 2 + 1), a real FFT by the usual count of Frigo and Johnson (2005) with its twiddle factors, the
products with the parts of W = d + U theta cost, at each position:

| part                  | forward      | to the input | to theta |
|-----------------------|--------------|--------------|----------|
| identity: dense       | 2 m n        | 2 m n        | 2 m n    |
| sparse, s entries     | 2 s          | 2 s          | 2 s      |
| DCT                   | T(q) + m     | T(q) + n     | 0        |
| alpha DCT             | T(q) + 2 m   | T(q) + n + m | 2 m      |
| any other d or U      | 2 m n, once  | 2 m n, once  | see below|

The m and n are additions to the other part's result and products with alpha. Any other d or U has W built: one dense
product in all; a sparse U then adds 2 s to theta and s a step, and any other takes 2 m n at each position and twice
2 m n dim a step (U theta, and U^T of the gradient). Nothing is counted for the input of the first layer, which needs no
gradient, nor for activations, pooling, the loss, the optimizer and sorting.

These are the counts of products that use what is sparse or fast, as structured layers may. `computed` is what torch
counts of a pass as it is done; for a model that is not structured, with every W built.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Size, Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import subspace
from subspace import SubspaceParametrization, subspaces
from subspace.embeddings import Direction, DirectSum, Embedding, Identity, Sparse
from subspace.offsets import DCT, Offset, Zero

KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Flops:
    """FLOPs per sample, and of every step whatever its size; `dense`: the gradient of all of W, which RigL looks at."""

    forward: float = 0.0
    to_input: float = 0.0
    to_theta: float = 0.0
    step: float = 0.0
    dense: float = 0.0

    def __add__(self, other: Flops) -> Flops:
        return Flops(*map(sum, zip(astuple(self), astuple(other), strict=True)))

    @property
    def training(self) -> float:
        """A forward and a backward pass of one sample."""
        return self.forward + self.to_input + self.to_theta

    @property
    def growth(self) -> float:
        """A forward and a backward pass of one sample for the gradient of all of W."""
        return self.forward + self.to_input + self.dense


@dataclass(frozen=True)
class Read:
    """One use of a weight in a forward pass: at how many positions of a sample, and if its input needs a gradient."""

    shape: Size
    parametrization: SubspaceParametrization | None
    positions: int
    differentiated: bool


def flops(model: nn.Module, images: Tensor) -> Flops:
    """The FLOPs of the model for one sample such as these. Raises as `reads`."""
    return sum(map(_flops, reads(model, images)), Flops())


def reads(model: nn.Module, images: Tensor) -> list[Read]:
    """Every use of a linear or convolution weight in a forward pass of the images, which leaves the model as it is.

    TypeError if the pass does not use a subspace in this way.
    """
    spaces = dict(subspaces(model))
    weights = {space.module: space.parametrization for space in spaces.values() if space.name == "weight"}
    found: list[Read] = []
    seen = set()

    def read(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        rows = module.out_features if isinstance(module, nn.Linear) else module.out_channels
        columns = module.in_features if isinstance(module, nn.Linear) else module.in_channels // module.groups  # type: ignore
        shape = Size((rows, columns, *getattr(module, "kernel_size", ())))  # type: ignore[arg-type]
        seen.add(module)
        positions = output.numel() // (len(images) * shape[0])
        found.append(Read(shape, weights.get(module), positions, inputs[0].requires_grad))

    hooks = [module.register_forward_hook(read) for module in model.modules() if isinstance(module, KINDS)]
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()(images)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode
    if uncounted := [q for q, s in spaces.items() if s.name != "weight" or s.module not in seen]:
        raise TypeError(
            f"FLOPs are counted of the weights of linear layers and convolutions, got {', '.join(uncounted)}"
        )
    return found


def _flops(read: Read) -> Flops:
    m, n, p = read.shape[0], read.shape[1:].numel(), read.positions
    parts: list[Offset | Embedding] = [Identity(torch.empty(1, 1))]
    if read.parametrization is not None:
        parts = [read.parametrization.offset, *_summands(read.parametrization.embedding)]
    products = [_product(part, m, n) for part in parts]
    known = [product for product in products if product is not None]
    once = sum(known, Flops()) if len(known) == len(parts) else _built(parts, m, n)
    to_input = once.to_input * read.differentiated
    return Flops(p * once.forward, p * to_input, p * once.to_theta, once.step, 2 * m * n * p)


def _summands(U: Embedding) -> list[Embedding]:
    return [*U.embeddings] if isinstance(U, DirectSum) else [U]


def _product(part: Offset | Embedding, m: int, n: int) -> Flops | None:
    """At one position, by the table above; None for a part that has W built."""
    if isinstance(part, Zero):
        return Flops()
    if isinstance(part, Identity):
        return Flops(2 * m * n, 2 * m * n, 2 * m * n)
    if isinstance(part, Sparse):
        return Flops(2 * part.dim, 2 * part.dim, 2 * part.dim)
    if isinstance(part, DCT):
        return Flops(transform(max(m, n)) + m, transform(max(m, n)) + n, 0)
    if isinstance(part, Direction) and (along := _product(part.offset, m, n)):
        return along + Flops(m, m, 2 * m)
    return None


def _built(parts: list[Offset | Embedding], m: int, n: int) -> Flops:
    total = Flops(2 * m * n, 2 * m * n)
    for U in parts:
        if isinstance(U, Sparse):
            total += Flops(0, 0, 2 * U.dim, U.dim)
        elif isinstance(U, Embedding):
            total += Flops(0, 0, 2 * m * n, 4 * m * n * U.dim)
    return total


def transform(q: int) -> float:
    """T(q), the FLOPs of one DCT of length q or of its inverse.

    >>> transform(4)
    38.0
    """
    return 2.5 * q * math.log2(q) + 6 * (q // 2 + 1)


class Meter(AbstractContextManager["Meter"]):
    """torch's own count of the FLOPs that are computed while it is entered, up to now in `flops`."""

    flops = 0

    def __enter__(self) -> Meter:
        def product(matrix: Size, *_: Any, **__: Any) -> int:  # of a matrix and a vector, which torch leaves out
            return 2 * matrix.numel()

        self.counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.mv: product})
        self.counter.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        self.counter.__exit__(*exception)  # type: ignore[no-untyped-call]
        self.flops += self.counter.get_total_flops()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Not to count for a while, nor to be slowed by it."""
        self.__exit__(None, None, None)
        try:
            yield
        finally:
            self.__enter__()


def computed(model: nn.Module, loss: Callable[[nn.Module], Tensor], samples: int) -> float:
    """FLOPs per sample of a forward and a backward pass by torch's own products, measured on a loss over so many.

    Leaves the model without gradients.
    """
    with Meter() as meter:
        loss(model).backward()  # type: ignore[no-untyped-call]
    model.zero_grad()
    return meter.flops / samples


def stored(model: nn.Module) -> int:
    """The bytes a checkpoint holds of the model's linear and convolution weights, subspaces or not yet."""
    covered = {space.module for _, space in subspaces(model)}
    plain = [m.weight for m in model.modules() if isinstance(m, KINDS) and m not in covered]
    return subspace.summary(model).stored_bytes + sum(weight.nbytes for weight in plain)
