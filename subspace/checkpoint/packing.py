"""A file of `save` made smaller: theta in the fewest bits that a measure allows."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

import torch
from torch import Tensor, nn

from subspace.checkpoint import schema
from subspace.checkpoint.packed import theta_names
from subspace.checkpoint.quantised import quantise
from subspace.checkpoint.sealed import Place, put, read, to_bytes
from subspace.parametrization import subspaces

EXACT = 32  # bits, as a measure of the exact file has them
Measure = Callable[[BinaryIO], float]  # of an open file, for `load`; less is better


@dataclass(frozen=True)
class Packed:
    """A file as it was packed.

    bits: of a number of theta. bytes, exact_bytes: the sizes of the file and of the one it was made of. error: the root
    mean square of what quantising changes in theta, over that of theta. measures: what was measured, by bits, of which
    32 are those of the exact file.
    """

    bits: int
    bytes: int
    exact_bytes: int
    error: float
    measures: dict[int, float] = field(default_factory=dict)


def pack(
    source: Place,
    target: Place,
    bits: int | Sequence[int] = (8, 6, 4),
    measure: Measure | None = None,
    rise: float = 0.01,
) -> Packed:
    """Write a file of `save` again with its theta quantised, in as few bits as the measure allows.

    Args:
        source: A file of `save` with an exact theta.
        target: Of the new file, which `load` takes as it takes any other; it appears whole or not at all.
        bits: Of a number of theta, from 2 to 8, or several to choose from.
        measure: What an open file is worth, as a loss on samples held apart; less is better. Needed for several bits.
        rise: The most by which the measure may exceed that of the exact file.

    Returns:
        What was written, and what was measured.

    Raises:
        OSError: If there is no such file, or the new one cannot be written.
        ValueError: If it is no such file, or packed already; for other bits, for several without a measure, and where
            all of them make the measure rise by more.
    """
    choices = [bits] if isinstance(bits, int) else sorted(bits)
    if not choices or (len(choices) > 1 and measure is None):
        raise ValueError(f"bits must be one number where there is no measure to choose by, got {bits}")
    about, tensors = read(source)
    schema.check(about, tensors)
    if "packed" in about:
        raise ValueError(f"theta must be exact in a file to pack, got one of {about['packed'].get('bits')} bits")
    exact = to_bytes(about, tensors)
    measures = {} if measure is None else {EXACT: measure(io.BytesIO(exact))}
    for each in choices:
        content = to_bytes(about, tensors, each)
        if measure is not None:
            measures[each] = measure(io.BytesIO(content))
        if measure is None or measures[each] <= measures[EXACT] + rise:
            put(target, content)
            thetas = [tensors[name].double() for name in theta_names(about)]
            return Packed(each, len(content), len(exact), _change(thetas, each), measures)
    raise ValueError(f"some of {choices} bits must make the measure rise by at most {rise:g}, got {measures}")


def _change(thetas: Sequence[Tensor], bits: int) -> float:
    """How far quantising moves the thetas, over how long they are."""
    whole = torch.cat([*thetas])
    moved = torch.cat([quantise(theta, bits).numbers() for theta in thetas]) - whole
    return float(moved.norm() / whole.norm()) if whole.any() else 0.0


@contextlib.contextmanager
def rounded(model: nn.Module, bits: int | None) -> Iterator[nn.Module]:
    """The model with the theta that a file of so many bits would give back, for as long as the context lasts.

    With None it is as it is. Raises ValueError as `save`, for other bits and a theta that is not finite.
    """
    thetas = list({id(space.theta): space.theta for _, space in subspaces(model)}.values()) if bits is not None else []
    near = [quantise(theta, bits or 0).numbers().to(theta) for theta in thetas]
    exact = [theta.data for theta in thetas]
    try:
        for theta, numbers in zip(thetas, near, strict=True):
            theta.data = numbers
        yield model
    finally:
        for theta, numbers in zip(thetas, exact, strict=True):
            theta.data = numbers
