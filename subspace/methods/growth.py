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
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from subspace._base.dtypes import at_least_float32
from subspace._base.preserve import preserved
from subspace._structured.forward import is_structured
from subspace.methods import weight_gradient
from subspace.methods.processes import average, unsynced
from subspace.methods.ranking import Supports
from subspace.methods.saliencies.base import Objective, evaluate, is_in_reentrant_checkpoint, require_gradients
from subspace.methods.top import count_nonfinite, top
from subspace.parametrization import Subspace
from subspace.products.layers import LAYERS, Layer, as_product

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

BLOCK = 1 << 20  # entries looked at together

Block = tuple[int, Tensor]  # where it starts, and the flat gradient from there on
Read = tuple[Tensor, Tensor]  # a layer's input and the gradient to its output


def largest_gradients(
    model: nn.Module,
    spaces: Mapping[str, Subspace],
    objective: Objective | None,
    kept: Supports,
    counts: Mapping[str, int],
    group: ProcessGroup | None = None,
    when: str = "",
) -> Supports:
    """The sorted places in each tensor, `counts` of them and none of those kept, of the largest |d objective / d w|.

    Tensors that the objective does not depend on are left out. The model is preserved. The gradient is the mean over
    the processes of the group. Raises as `evaluate`, and FloatingPointError naming a tensor whose gradient is not
    finite.
    """

    def reduce(name: str, blocks: Iterator[Block]) -> Tensor:
        finite = _finite(blocks, name, when)
        return largest(_of_coefficients(spaces[name], finite), kept[name], counts[name])

    reader = GradientReader(spaces, reduce) if group is None else AveragedGradientReader(spaces, reduce, group)
    with preserved(model), torch.enable_grad(), unsynced(model):
        with _seen(reader.read) as read, _watched(spaces, read):
            value = evaluate(objective, model)
        if reader.thetas:
            torch.autograd.grad(value, reader.thetas, allow_unused=True)
        reader.finish()
    return reader.found


class GradientReader:
    """Reduces the gradient of each weight as soon as the backward pass has made all of it.

    A weight may be read several times in a forward pass, and its gradient is the sum over these reads.
    """

    def __init__(self, spaces: Mapping[str, Subspace], reduce: Callable[[str, Iterator[Block]], Tensor]) -> None:
        self.spaces, self.reduce = spaces, reduce
        self.found: Supports = {}
        self.thetas: list[Tensor] = []  # of these reads: `fully_shard` takes others for each
        self._reads: Counter[str] = Counter()  # whose gradient has not arrived
        self._sums: dict[str, Tensor] = {}
        self._calls: dict[str, list[Read]] = defaultdict(list)

    def read(self, name: str, tensor: Tensor, x: Tensor | None = None) -> None:
        """Expect the gradient to `tensor`: a weight, or what its layer made of x without computing the weight."""
        self._reads[name] += 1
        self.thetas.append(self.spaces[name].theta)
        tensor.register_hook(partial(self._arrived, name, x))  # type: ignore[no-untyped-call]

    def _arrived(self, name: str, x: Tensor | None, gradient: Tensor) -> None:
        if x is not None:
            self._calls[name].append((x, gradient))
        else:
            self._sums[name] = self._sums[name] + gradient if name in self._sums else gradient
        self._reads[name] -= 1
        if not self._reads[name]:
            self._reduce(name)

    def _reduce(self, name: str) -> None:
        self.found[name] = self.reduce(name, self._taken(name))

    def _taken(self, name: str) -> Iterator[Block]:
        """The gradient of a weight, which is then held no longer."""
        return _blocks(self.spaces[name], self._sums.pop(name, None), self._calls.pop(name, []))

    def finish(self) -> None:
        """Reduce the weights that the objective depends on by some of their reads only."""
        for name in {**self._sums, **self._calls}:
            self._reduce(name)


class AveragedGradientReader(GradientReader):
    """The same of gradients that are means over processes.

    All processes reduce the weights in one order, the last registered first, as the backward pass mostly has it; a
    gradient that arrives before its turn is held until then. Where a process's objective does not depend on a weight
    its gradient is 0.
    """

    def __init__(
        self,
        spaces: Mapping[str, Subspace],
        reduce: Callable[[str, Iterator[Block]], Tensor],
        group: ProcessGroup,
    ) -> None:
        super().__init__(spaces, reduce)
        self.group = group
        self._order, self._whole = list(spaces), set[str]()

    def _reduce(self, name: str) -> None:
        self._whole.add(name)
        while self._order and self._order[-1] in self._whole:
            self._reduce_together(self._order.pop())

    def finish(self) -> None:
        """Reduce the weights whose turn has not come."""
        while self._order:
            self._reduce_together(self._order.pop())

    def _reduce_together(self, name: str) -> None:
        mine = name in self._sums or name in self._calls
        theta, numel = self.spaces[name].theta, self.spaces[name].shape.numel()
        share = average(torch.full((1,), float(mine), device=theta.device), self.group)
        if share.item() == 0:
            return
        zeros = torch.zeros(1, dtype=theta.dtype, device=theta.device).expand(numel)
        blocks = self._taken(name) if mine else iter([(0, zeros)])
        self.found[name] = self.reduce(name, self._averaged(_even(blocks)))

    def _averaged(self, blocks: Iterator[Block]) -> Iterator[Block]:
        for start, block in blocks:
            yield start, average(block.to(at_least_float32(block.dtype), copy=True).contiguous(), self.group)


def _even(blocks: Iterator[Block]) -> Iterator[Block]:
    """The same in blocks of one size, the last one smaller: processes may have cut theirs in other ways."""
    start, rest = 0, None
    for _, block in blocks:
        rest = block if rest is None else torch.cat([rest, block])
        while len(rest) >= BLOCK:
            yield start, rest[:BLOCK]
            start, rest = start + BLOCK, rest[BLOCK:]
    if rest is not None and len(rest):
        yield start, rest


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


def _of_coefficients(space: Subspace, blocks: Iterator[Block]) -> Iterator[Block]:
    """The gradient to the coefficients in a basis, all at once, if the places of theta are those of one."""
    U = next((U for U in space.embedding.parts() if U.sparse_part() is not None), None)
    if U is None or U.support() is not None:  # of w itself
        return blocks
    whole = torch.cat([block for _, block in blocks]).reshape(space.shape)
    return iter([(0, U.coefficients(whole))])


def _finite(blocks: Iterable[Block], name: str, when: str) -> Iterator[Block]:
    """The blocks; raises FloatingPointError after the last, if not all entries were finite."""
    bad = 0
    for start, block in blocks:
        bad += count_nonfinite(block)
        yield start, block
    if bad:
        raise FloatingPointError(f"gradients must be finite, got {bad} in {name} that are not{when}")


@contextmanager
def _seen(read: Callable[..., None]) -> Iterator[Callable[..., None]]:
    """A reader of what gradients come to; at the end raises ValueError for what was in reentrant checkpoints alone."""
    seen: set[str] = set()
    blind: set[str] = set()

    def read_seen(name: str, made: Tensor, *x: Tensor) -> None:
        if made.requires_grad:
            seen.add(name)
            read(name, made, *x)
        elif is_in_reentrant_checkpoint():
            blind.add(name)

    yield read_seen
    require_gradients(blind - seen)


@contextmanager
def _watched(spaces: Mapping[str, Subspace], read: Callable[..., None]) -> Iterator[None]:
    """Call read(name, weight) whenever one of the weights is computed, and read(name, y, x) for a layer without.

    Such a layer is a structured one, or one whose forward was rebound on the instance, that makes y of x without
    computing the weight. Of one that is both, somebody may change x or y: it computes its weight for once.
    """
    computed: Counter[str] = Counter()
    before: dict[str, int] = {}
    with ExitStack() as undo:
        for name, space in spaces.items():

            def weighed(_: nn.Module, __: Any, weight: Tensor, name: str = name) -> None:
                computed[name] += 1
                read(name, weight)

            def entered(_: nn.Module, __: Any, name: str = name) -> None:
                before[name] = computed[name]

            def left(_: nn.Module, args: tuple[Any, ...], options: dict[str, Any], y: Tensor, name: str = name) -> None:
                if computed[name] == before[name]:
                    x: Tensor = args[0] if args else options["input"]
                    read(name, y, x.detach())

            undo.callback(space.parametrization.register_forward_hook(weighed).remove)
            structured, rebound = is_structured(space.module), "forward" in vars(space.module)
            if structured and rebound:
                undo.callback(setattr, space.parametrization, "products", space.parametrization.products)
                space.parametrization.products = None
            if isinstance(space.module, LAYERS) and space.name == "weight" and (structured or rebound):
                undo.callback(space.module.register_forward_pre_hook(entered).remove)
                undo.callback(space.module.register_forward_hook(left, prepend=True, with_kwargs=True).remove)
        yield
