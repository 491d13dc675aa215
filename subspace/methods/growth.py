"""Where the dense gradient is largest, without ever holding more of it than one tensor's.

One forward and one backward pass, with a hook on every computed weight: the backward pass makes the gradient of each
weight anyway, on its way to theta, and drops it once the hook has reduced it to its few largest entries. (Evaluating
the objective for one tensor at a time would hold no less, and cost as many passes as there are tensors.) Where a layer
never computes its weight, a hook on its call keeps input and output gradient instead, and theirs is made and reduced
some rows at a time: at most `BLOCK` entries, or a row, are there at once.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from subspace._base.dtypes import at_least_float32
from subspace._base.preserve import preserved
from subspace.methods import weight_gradient
from subspace.methods.ranking import Supports
from subspace.methods.saliencies.base import Objective, evaluate
from subspace.methods.top import count_nonfinite, top
from subspace.parametrization import Subspace
from subspace.products.layers import LAYERS, Layer, as_product

BLOCK = 1 << 20  # entries looked at together

Block = tuple[int, Tensor]  # where it starts, and the flat gradient from there on
Read = tuple[Tensor, Tensor]  # a layer's input and the gradient to its output


def largest_gradients(
    model: nn.Module,
    spaces: Mapping[str, Subspace],
    objective: Objective | None,
    kept: Supports,
    counts: Mapping[str, int],
    when: str = "",
) -> Supports:
    """The sorted places, so many in each tensor and none of those kept, of the largest |d objective / d w|.

    Tensors that the objective does not depend on are left out. The model is preserved. Under DistributedDataParallel
    give every process the same objective. Raises as `evaluate`, and FloatingPointError naming a tensor whose gradient
    is not finite.
    """
    reads: Counter[str] = Counter()
    sums: dict[str, Tensor] = {}
    calls: dict[str, list[Read]] = defaultdict(list)
    chosen: Supports = {}

    def read(q: str, tensor: Tensor, x: Tensor | None = None) -> None:  # the weight, or what the layer made of x
        reads[q] += 1
        tensor.register_hook(partial(arrived, q, x))  # type: ignore[no-untyped-call]

    def arrived(q: str, x: Tensor | None, gradient: Tensor) -> None:  # of one read; a weight may be read several times
        if x is not None:
            calls[q].append((x, gradient))
        else:
            sums[q] = sums[q] + gradient if q in sums else gradient
        reads[q] -= 1
        if not reads[q]:
            reduce(q)

    def reduce(q: str) -> None:
        blocks = _blocks(spaces[q], sums.pop(q, None), calls.pop(q, []))
        chosen[q] = largest(_finite(blocks, q, when), kept[q], counts[q])

    with preserved(model), torch.enable_grad():
        with _watched(spaces, read):
            value = evaluate(objective, model)
        torch.autograd.grad(value, [space.theta for space in spaces.values()], allow_unused=True)
        for q in {**sums, **calls}:  # of which some read was of no consequence
            reduce(q)
    return chosen


def largest(blocks: Iterable[Block], kept: Tensor, count: int) -> Tensor:
    """The sorted places, outside of the sorted `kept`, of the `count` largest |gradient|: blocks -> (count,)."""
    values, places, least = torch.empty(0, device=kept.device), kept.new_empty(0), -1.0
    for start, gradient in blocks:
        block = gradient.abs().to(at_least_float32(gradient.dtype))
        first, last = torch.searchsorted(kept, kept.new_tensor([start, start + len(block)])).tolist()
        block[kept[first:last] - start] = -1
        above = (block > least).nonzero().squeeze(1)  # equal ones come too late
        values, places = torch.cat([values, block[above]]), torch.cat([places, above + start])
        best = top(values, min(count, len(values)))
        values, places = values[best], places[best]
        if len(values) == count > 0:
            least = float(values.min())
    return places


def _blocks(space: Subspace, whole: Tensor | None, calls: list[Read]) -> Iterator[Block]:
    """The gradient, of reads of the weight and of calls of a layer together, flat and in blocks."""
    flat = None if whole is None else whole.reshape(-1)
    if not calls:
        if flat is not None:
            yield from ((start, flat[start : start + BLOCK]) for start in range(0, len(flat), BLOCK))
        return
    layer, shape = cast(Layer, space.module), space.parametrization.offset.shape
    made = [as_product(layer, x) for x, _ in calls]
    pairs = [
        (x, gy.reshape(len(x), shape[0], *gy.shape[gy.ndim - len(shape) + 2 :]))
        for (x, _), (_, gy) in zip(made, calls, strict=True)
    ]
    for row, block in weight_gradient.blocks(pairs, shape, made[0].geometry, entries=BLOCK):
        start, gradient = row * shape[1:].numel(), block.reshape(-1)
        yield start, gradient if flat is None else gradient + flat[start : start + len(gradient)]


def _finite(blocks: Iterable[Block], q: str, when: str) -> Iterator[Block]:
    """The blocks; raises FloatingPointError after the last, if not all entries were finite."""
    bad = 0
    for start, block in blocks:
        bad += count_nonfinite(block)
        yield start, block
    if bad:
        raise FloatingPointError(f"gradients must be finite, got {bad} in {q} that are not{when}")


@contextmanager
def _watched(spaces: Mapping[str, Subspace], read: Callable[..., None]) -> Iterator[None]:
    """Call read(name, weight) whenever one of the weights is computed, and read(name, y, x) for a layer without.

    Such a layer is one whose forward was rebound on the instance and makes y of x without computing the weight.
    """
    computed: Counter[str] = Counter()
    before: dict[str, int] = {}
    with ExitStack() as undo:
        for q, space in spaces.items():

            def weighed(_: nn.Module, __: Any, weight: Tensor, q: str = q) -> None:
                computed[q] += 1
                if weight.requires_grad:
                    read(q, weight)

            def entered(_: nn.Module, __: Any, q: str = q) -> None:
                before[q] = computed[q]

            def left(_: nn.Module, args: tuple[Any, ...], options: dict[str, Any], y: Tensor, q: str = q) -> None:
                if computed[q] == before[q] and y.requires_grad:
                    x: Tensor = args[0] if args else options["input"]
                    read(q, y, x.detach())

            undo.callback(space.parametrization.register_forward_hook(weighed).remove)
            if isinstance(space.module, LAYERS) and space.name == "weight" and "forward" in vars(space.module):
                undo.callback(space.module.register_forward_pre_hook(entered).remove)
                undo.callback(space.module.register_forward_hook(left, prepend=True, with_kwargs=True).remove)
        yield
