"""From scores to index sets: exact counts, ties broken by order, the same on every machine."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from itertools import accumulate

import torch
from torch import Tensor

from subspace._base.key import Key
from subspace._base.layout import STANDARD, Layout
from subspace.methods.budgets import Budget, divide, entries
from subspace.methods.groups import Groups, places, top_per_group
from subspace.methods.saliencies.base import Scores
from subspace.methods.top import count_nonfinite, top

Supports = dict[str, Tensor]  # by qualified name, the sorted flat int64 index of what is kept


def select(
    scores: Scores,
    density: float | None = None,
    *,
    dim: int | None = None,
    budget: Budget | None = None,
    groups: Groups | None = None,
    among: Supports | None = None,
    layouts: Mapping[str, Layout] | None = None,
) -> Supports:
    """Keep the dim = round(density N) highest scores; among equals, the first in the order of the scores and of places.

    Args:
        scores: Of each tensor, by qualified name, shaped like the weight.
        density: The fraction in (0, 1] of all scored entries that is kept; or give dim.
        dim: How many entries are kept.
        budget: How many of each tensor are kept; by default all tensors compete.
        groups: How a tensor's number is spread inside it, as `rows` or `blocks(4)`.
        among: The only places that can be kept, of each tensor.
        layouts: How tensors are matrices, for budget and groups, where they are not as a convolution's weight.

    Returns:
        The sorted flat places kept of each tensor, by qualified name. A warning names the tensors left without any.

    Raises:
        FloatingPointError: If a score is not finite; it names the tensor.
        TypeError: If not exactly one of density and dim is given.
        ValueError: If one of them is out of range.
    """
    require_finite(scores)
    kept = choose(scores, entries(_numel(scores), density, dim), budget, groups, among, layouts)
    warn_empty({name: len(index) for name, index in kept.items()})
    return kept


def choose(
    scores: Scores,
    total: int,
    budget: Budget | None,
    groups: Groups | None,
    among: Supports | None,
    layouts: Mapping[str, Layout] | None = None,
) -> Supports:
    """`select` without its checks."""
    each = {name: (layouts or {}).get(name, STANDARD) for name in scores}
    flat = {name: s.reshape(-1) if among is None else _only(s.reshape(-1), among[name]) for name, s in scores.items()}
    sizes = [s.numel() for s in flat.values()]
    if budget is not None:
        counts = divide(budget, [s.shape for s in scores.values()], total, list(each.values()))
    elif groups is None:
        return _split(top(torch.cat(list(flat.values())), total), dict(zip(flat, sizes, strict=True)))
    else:
        counts = [len(kept) for kept in choose(scores, total, None, None, among).values()]
    if groups is None:
        return {name: top(s, count) for (name, s), count in zip(flat.items(), counts, strict=True)}
    lines = {name: places(groups, s.shape, each[name]).to(s.device) for name, s in scores.items()}
    return {name: top_per_group(s, n, lines[name]) for (name, s), n in zip(flat.items(), counts, strict=True)}


def shuffle(supports: Supports, like: Mapping[str, Tensor], key: Key) -> Supports:
    """Draw as many entries in every tensor at random: the control of Frankle et al. (2021).

    Args:
        supports: The places kept of each tensor, by qualified name.
        like: Tensors of the weights' shapes, such as scores, by name.
        key: Where the places come from, folded with each name.

    Returns:
        Other sorted places, as many of each tensor.
    """
    return {
        name: torch.from_numpy(key.fold(name).distinct(like[name].numel(), len(index))).sort().values.to(index.device)
        for name, index in supports.items()
    }


def require_finite(scores: Scores, when: str = "") -> None:
    """Raise FloatingPointError naming the first tensor with a score that is not finite."""
    for name, s in scores.items():
        if bad := count_nonfinite(s):
            raise FloatingPointError(f"scores must be finite, got {bad} of {s.numel()} in {name} that are not{when}")


def warn_empty(counts: Mapping[str, int], stacklevel: int = 3) -> None:
    """Warn where tensors are left without any entry, as at extreme densities they are."""
    if empty := [name for name, count in counts.items() if count == 0]:
        total = sum(counts.values())
        fewer = f": fewer entries than the {len(counts)} tensors" if total < len(counts) else ""
        warnings.warn(f"the budget of {total} leaves no entry to {', '.join(empty)}{fewer}", stacklevel=stacklevel)


def _numel(scores: Scores) -> int:
    return sum(s.numel() for s in scores.values())


def _only(flat: Tensor, index: Tensor) -> Tensor:
    return torch.full_like(flat, -math.inf).scatter(0, index, flat[index])


def _split(index: Tensor, sizes: Mapping[str, int]) -> Supports:
    """A sorted index into the concatenation of tensors of these sizes, as one for each."""
    starts = [0, *accumulate(sizes.values())]
    bounds = torch.searchsorted(index, index.new_tensor(starts)).tolist()
    cuts = zip(sizes, starts, bounds, bounds[1:], strict=False)
    return {name: index[first:last] - start for name, start, first, last in cuts}
