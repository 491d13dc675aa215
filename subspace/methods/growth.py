"""Where the dense gradient is largest, without ever holding more of it than one tensor's.

One forward and one backward pass, with a hook on every computed weight: the backward pass makes the gradient of each
weight anyway, on its way to theta, and drops it once the hook has reduced it to its few largest entries. (Evaluating
the objective for one tensor at a time would hold no less, and cost as many passes as there are tensors.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from subspace.fixed import wide
from subspace.methods.saliency import Objective, evaluate, preserved
from subspace.methods.select import Supports
from subspace.methods.top import infinite, top
from subspace.parametrization import Subspace

BLOCK = 1 << 20  # entries looked at together


def steepest(
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
    chosen: Supports = {}

    def read(q: str, weight: Tensor) -> None:
        reads[q] += 1
        weight.register_hook(partial(arrived, q))  # type: ignore[no-untyped-call]

    def arrived(q: str, gradient: Tensor) -> None:  # of one read; a weight may be read several times
        sums[q] = sums[q] + gradient if q in sums else gradient
        reads[q] -= 1
        if not reads[q]:
            reduce(q)

    def reduce(q: str) -> None:
        gradient = sums.pop(q).reshape(-1)
        if bad := infinite(gradient):
            raise FloatingPointError(f"gradients must be finite, got {bad} in {q} that are not{when}")
        chosen[q] = largest(gradient, kept[q], counts[q])

    with preserved(model), torch.enable_grad():
        with _watched(spaces, read):
            value = evaluate(objective, model)
        torch.autograd.grad(value, [space.theta for space in spaces.values()], allow_unused=True)
        for q in list(sums):  # of which some read was of no consequence
            reduce(q)
    return chosen


def largest(gradient: Tensor, kept: Tensor, count: int) -> Tensor:
    """The sorted places, outside of the sorted `kept`, of the `count` largest |gradient|: (numel,) -> (count,)."""
    values, places = gradient.new_empty(0, dtype=wide(gradient.dtype)), kept.new_empty(0)
    for start in range(0, len(gradient), BLOCK):
        block = gradient[start : start + BLOCK].abs().to(values.dtype)
        first, last = torch.searchsorted(kept, kept.new_tensor([start, start + len(block)])).tolist()
        block[kept[first:last] - start] = -1
        values = torch.cat([values, block])
        places = torch.cat([places, torch.arange(start, start + len(block), device=kept.device)])
        best = top(values, min(count, len(values)))
        values, places = values[best], places[best]
    return places


@contextmanager
def _watched(spaces: Mapping[str, Subspace], read: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call read(name, weight) whenever one of the weights is computed.

    A module whose forward was rebound so that it never builds its weight gets its class's own meanwhile, as a
    checkpoint: its weight is built, used and dropped, and built once more in the backward pass.
    """
    with ExitStack() as undo:
        for q, space in spaces.items():

            def hook(_: nn.Module, __: Any, weight: Tensor, q: str = q) -> None:
                if weight.requires_grad:
                    read(q, weight)

            undo.callback(space.parametrization.register_forward_hook(hook).remove)
        for module in {space.module for space in spaces.values()}:
            if "forward" in vars(module):
                undo.callback(setattr, module, "forward", module.forward)
                module.forward = partial(
                    checkpoint, partial(type(module).forward, module), use_reentrant=False, preserve_rng_state=False
                )
        yield
