"""The gradient to a dense weight some rows at a time, for callers that reduce it block by block.

The same arithmetic as the whole gradient; a convolution's input is read once for every block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import cast

from torch import Tensor

from subspace._base.dtypes import at_least_float32
from subspace.products.geometry import LINEAR, Geometry


def blocks(
    reads: Sequence[tuple[Tensor, Tensor]],
    shape: Sequence[int],
    geometry: Geometry = LINEAR,
    *,
    entries: int = 1 << 20,
) -> Iterator[tuple[int, Tensor]]:
    """(first row, rows of dL/dw) one after the other, each of at most `entries` entries, or one row.

    reads: of every product with w, its input x and the gradient gy to its output: (rows, n_in) and (rows, n_out), or
    for a convolution (N, C, *spatial) and (N, C_out, *spatial'). shape: of w. In float32 at least.
    """
    n_out, each = shape[0], shape[0] // geometry.groups
    most = max(1, entries // math.prod(shape[1:]))
    step = most // each * each or most  # whole groups, or parts of one
    first = 0
    while first < n_out:
        last = min(first + step, n_out if step >= each else (first // each + 1) * each)
        yield first, _sum(reads, first, last, shape, geometry)
        first = last


def _sum(
    reads: Sequence[tuple[Tensor, Tensor]],
    first: int,
    last: int,
    shape: Sequence[int],
    geometry: Geometry,
) -> Tensor:
    """Rows first ... last of the gradient, summed over the reads."""
    each, channels = shape[0] // geometry.groups, shape[1]
    lowest, highest = first // each, (last - 1) // each + 1  # of the groups
    total: Tensor | None = None
    for x, gy in reads:
        part = gy[:, first:last].to(at_least_float32(gy.dtype))
        seen = x[:, lowest * channels : highest * channels].to(part.dtype)
        w = part.new_empty(1).expand(last - first, *shape[1:])  # of which only the shape matters
        gradient = cast(Tensor, geometry._replace(groups=highest - lowest).gradients(part, seen, w, False, True)[1])
        total = gradient if total is None else total.add_(gradient)
    if total is None:
        raise ValueError("reads must have at least one pair, got none")
    return total
