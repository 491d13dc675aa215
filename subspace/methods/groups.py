"""Where a tensor's entries may lie: groups of places that each get the same number of them, to within one.

A grouping is a function of the weight's shape, with the flat places of one group in every line of the result.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Size, Tensor

from subspace._base.layout import STANDARD, Layout
from subspace.methods.top import top

Groups = Callable[[Size], Tensor]


def rows(shape: Size) -> Tensor:
    """Every row (filter) is a group: a constant fan-in, EPF.

    Args:
        shape: Of the weight.

    Returns:
        The flat places of each group, one group in each line.

    >>> rows(Size([2, 3]))
    tensor([[0, 1, 2],
            [3, 4, 5]])
    """
    return torch.arange(shape.numel()).reshape(shape[0] if shape else 1, -1)


def blocks(m: int) -> Groups:
    """Make the grouping of every m consecutive inputs: N:M sparsity at density N / M.

    Inputs are the channels, at one tap of one filter.

    Args:
        m: The size of a group. The grouping raises ValueError where it does not divide the number of inputs, shape[1].

    Returns:
        The grouping: shape -> the flat places of each group, one group in each line.

    >>> blocks(2)(Size([1, 4, 2]))
    tensor([[0, 2],
            [4, 6],
            [1, 3],
            [5, 7]])
    """

    def grouping(shape: Size) -> Tensor:
        inputs = shape[1] if len(shape) > 1 else 1
        if m < 1 or inputs % m:
            raise ValueError(f"the number of inputs must be a multiple of {m}, got shape {tuple(shape)}")
        places = torch.arange(shape.numel()).reshape(shape[0] if shape else 1, inputs // m, m, -1)
        return places.permute(0, 3, 1, 2).reshape(-1, m)

    return grouping


def places(groups: Groups, shape: Size, layout: Layout = STANDARD) -> Tensor:
    """The flat places of each group in a tensor of that layout: by its matrices below one another.

    >>> places(rows, Size([2, 3]), Layout.parse("in out"))
    tensor([[0, 3],
            [1, 4],
            [2, 5]])
    """
    if layout == STANDARD:
        return groups(shape)
    as_convolution = layout.to_convolution(torch.arange(shape.numel()).reshape(shape))
    return as_convolution.flatten()[groups(as_convolution.shape)]


def top_per_group(scores: Tensor, count: int, groups: Tensor) -> Tensor:
    """The `count` highest scores, shared evenly by the groups: (numel,) -> sorted (count,) int64.

    Where count is no multiple of the number of groups, the groups with the highest next score get one more.
    """
    each, left = divmod(count, len(groups))
    grouped = scores[groups]
    order = grouped.argsort(dim=1, descending=True, stable=True)
    places = groups.gather(1, order)
    chosen = places[:, :each].reshape(-1)
    if left:
        following = places[:, each]
        chosen = torch.cat([chosen, following[top(scores[following], left)]])
    return chosen.sort().values
