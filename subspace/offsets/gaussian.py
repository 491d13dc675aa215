"""A seeded standard initialisation as offset: random subspaces (Li et al. 2018), FreezeNet (Wimmer et al. 2020).

Kaiming (He et al. 2015) is the default; `fan="average"` gives Xavier (Glorot and Bengio 2010), `distribution="uniform"`
the uniform variants. Nothing is stored but the key: d is drawn again at every call, about 40 ns an entry, on the CPU.
With `keep=True` it is drawn once and held, n_out n_in numbers, in memory only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from subspace._base.dtypes import at_least_float32
from subspace._base.exporting import as_constant, is_exporting
from subspace._base.key import Key
from subspace._base.layout import STANDARD, Layout
from subspace._base.plug_in import require_key
from subspace._base.sharded import whole
from subspace.offsets.base import Offset


class Gaussian(Offset):
    """d i.i.d. of mean zero and variance gain^2 / fan, drawn from the key.

    Args:
        like: The weight, or any floating-point tensor of its shape, dtype and device; its values are not kept.
        key: Where the entries come from.
        distribution: Of an entry.
        fan: What the variance is divided by: the inputs of an output, the outputs of an input, or their average.
        gain: By default sqrt 2, for fan "average" 1.
        keep: Whether d is drawn once and held, in place of at every call.
        layout: How the weight is a matrix.

    Raises:
        ValueError: If `like` has fewer than two axes, or an argument is none of its choices.

    >>> d = Gaussian(torch.empty(100, 300), key=Key(0))()
    >>> round(float(d.var()) * 300, 1)
    2.0
    """

    is_drawn_by_entry, dense = True, "kept"

    def __init__(
        self,
        like: Tensor,
        *,
        key: Key | None = None,
        distribution: Literal["normal", "uniform"] = "normal",
        fan: Literal["in", "out", "average"] = "in",
        gain: float | None = None,
        keep: bool = False,
        layout: Layout = STANDARD,
    ) -> None:
        super().__init__(like, key=require_key(key, self), layout=layout)
        if like.ndim < 2:
            raise ValueError(f"like must have at least 2 axes to have a fan, got shape {tuple(like.shape)}")
        if distribution not in ("normal", "uniform"):
            raise ValueError(f"distribution must be 'normal' or 'uniform', got {distribution!r}")
        if fan not in ("in", "out", "average"):
            raise ValueError(f"fan must be 'in', 'out' or 'average', got {fan!r}")
        self._stream = str(self.key)  # ahead of time: torch.compile cannot trace it
        self.distribution, self.fan, self.gain, self.keep = distribution, fan, gain, keep
        self.rebuild()

    @property
    def std(self) -> float:
        """The standard deviation of an entry."""
        n_out, n_in = self.fans
        fan_out = n_out * self.layout.taps(self.shape)
        fan = {"in": n_in, "out": fan_out, "average": (n_in + fan_out) / 2}[self.fan]
        gain = self.gain if self.gain is not None else 1.0 if self.fan == "average" else math.sqrt(2)
        return gain / math.sqrt(fan)

    def rebuild(self) -> None:
        self.kept = self._draw() if self.keep else None

    def _draw(self) -> Tensor:
        uniform = self.distribution == "uniform"
        return draw(self._stream, self.shape, uniform, self.std, self.like)

    def forward(self) -> Tensor:
        return self._draw() if self.kept is None else whole(self.kept)


def draw(key: str, shape: Sequence[int], uniform: bool, std: float, like: Tensor) -> Tensor:
    """Numbers of a key's stream, of like's dtype and device, as graphs can have them: (shape)."""
    if is_exporting():
        return _drawn(key, tuple(shape), uniform, std, like.dtype, like.device)
    d: Tensor = torch.ops.subspace.draw(key, shape, uniform, std, like)
    return d


def _draw(
    key: str, shape: Sequence[int], uniform: bool, std: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    n, wide = math.prod(shape), at_least_float32(dtype)
    if uniform:
        values = torch.from_numpy(Key.parse(key).uniform(n)).mul_(2).sub_(1).mul_(std * math.sqrt(3)).to(wide)
    else:
        values = torch.from_numpy(Key.parse(key).normal(n, dtype=str(wide).removeprefix("torch."))).mul_(std)
    return values.to(device, dtype).reshape(shape)


_drawn = as_constant(_draw)
_operator = torch.library.custom_op(
    "subspace::draw",
    lambda key, shape, uniform, std, like: _draw(key, shape, uniform, std, like.dtype, like.device),
    mutates_args=(),
    schema="(str key, SymInt[] shape, bool uniform, float std, Tensor like) -> Tensor",
)
_operator.register_fake(lambda key, shape, uniform, std, like: like.new_empty(shape))
