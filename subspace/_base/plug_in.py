"""The base class of offsets and embeddings: they are fixed, and rebuilt from a key rather than stored."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from subspace._base.dtypes import at_least_float32
from subspace._base.key import Key
from subspace._base.layout import STANDARD, Layout, checked

if TYPE_CHECKING:
    from typing_extensions import Self


class PlugIn(nn.Module):
    """Something fixed that belongs to one weight: no Parameters, and no dense state that its key can rebuild.

    It follows the dtype and device of the module it is registered on, but for half precision, where it is computed in
    float32. What it holds, it holds as plain tensors, not as buffers, which averages of models would average and
    DistributedDataParallel would broadcast at every forward. Those that no key rebuilds are named in `given`: they keep
    their values, whatever becomes of the module's.

    A plug-in keeps each argument of its constructor as an attribute of the same name: that is how `describe` finds
    them.

    Args:
        like: The weight, or any floating-point tensor of its shape, dtype and device; its values are not kept.
        key: Where what is random comes from; required by the plug-ins that are.
        layout: How the weight is a matrix, for plug-ins that are a matrix of their own.

    Raises:
        TypeError: If `like` is not a real floating-point tensor, or `key` not a `Key`.
    """

    given: tuple[str, ...] = ()

    def __init__(self, like: Tensor, *, key: Key | None = None, layout: Layout = STANDARD) -> None:
        if not (isinstance(like, Tensor) and like.is_floating_point()):
            raise TypeError(f"like must be a real floating-point tensor, got {getattr(like, 'dtype', like)}")
        if not (key is None or isinstance(key, Key)):
            raise TypeError(f"key must be a subspace.Key, got {key!r}")
        super().__init__()
        self.shape, self.key, self.layout = like.shape, key, checked(Layout(*layout), like.shape)
        self.fans = self.layout.fans(like.shape)  # (n_out, n_in) of the weight as a matrix, or of each of several
        self.matrices = self.layout.matrices(like.shape)
        self.like = _carrier(like)

    def describe(self) -> dict[str, Any]:
        """The class's name and what its constructor takes besides `like`: enough to build it again.

        Raises ValueError where an argument was not kept.
        """
        known = {"like", "layout"} if self.layout == STANDARD else {"like"}
        names = [name for name in inspect.signature(type(self)).parameters if name not in known]
        if missing := [name for name in names if not hasattr(self, name)]:
            raise ValueError(f"{type(self).__name__} must keep its argument {missing[0]} as an attribute of that name")
        return {"class": type(self).__name__} | {name: getattr(self, name) for name in names}

    def label(self) -> str:
        """A short name, as "Direction(DCT)"."""
        parts = ", ".join(child.label() for child in self.children() if isinstance(child, PlugIn))
        return f"{type(self).__name__}({parts})" if parts else type(self).__name__

    def rebuild(self) -> None:
        """Build what is held anew, from the key, for the present dtype and device."""

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        before = self.like
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.like = _carrier(fn(before))
        for name in self.given if not self.like.is_meta else ():
            setattr(self, name, getattr(self, name).to(self.like.device))  # not fn, which may give no values back
        if (self.like.dtype, self.like.device) != (before.dtype, before.device):
            self.rebuild()
        return self

    def extra_repr(self) -> str:
        try:
            described = self.describe()
        except ValueError:
            described = {}
        shown = {name: value for name, value in described.items() if isinstance(value, bool | int | float | str)}
        return ", ".join([f"shape={tuple(self.shape)}", *(f"{k}={v}" for k, v in shown.items() if k != "class")])


def _carrier(like: Tensor) -> Tensor:
    """An empty tensor with the dtype and device that d or U is computed in."""
    return torch.empty(0, dtype=at_least_float32(like.dtype), device=like.device)


def require_key(key: Key | None, owner: object) -> Key:
    """Return the key; raise TypeError, saying who needs one, if there is none."""
    if key is None:
        raise TypeError(f"{type(owner).__name__} needs a key=, got None")
    return key
