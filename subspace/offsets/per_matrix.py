"""An offset for each matrix of a tensor that holds several: experts, the gates of an LSTM, queries, keys and values."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

from subspace._base.layout import STANDARD, Layout
from subspace.offsets.base import Offset
from subspace.products.flops import Flops


def in_layout(offset: Offset, layout: Layout) -> Offset:
    """The same offset for a weight that is such a matrix, or one for each of several.

    It stays itself where that makes no difference, if it was made for another layout, and if it takes none.
    """
    ours = offset.layout != STANDARD or "layout" not in inspect.signature(type(offset)).parameters
    if layout == STANDARD or ours:
        return offset
    if layout.matrices(offset.shape) > 1 and not offset.is_drawn_by_entry:
        return PerMatrix(offset, layout=layout)
    options = {name: value for name, value in offset.describe().items() if name != "class"}
    return type(offset)(offset.like.new_empty(()).expand(offset.shape), **options, layout=layout)


class PerMatrix(Offset):
    """d of a tensor of several matrices: what one offset would be for each of them, if they were tensors by themselves.

    Of an offset that is drawn from a key, each matrix has one of its own, by the key folded with its number; one that
    is not is the same for all, and is built once.

    Args:
        offset: For the whole tensor: its class, options and key are those of each.
        layout: How the tensor is its matrices.

    >>> from subspace.offsets.dct import DCT
    >>> d = PerMatrix(DCT(torch.empty(3, 2, 8)), layout=Layout.parse("batch out in"))()
    >>> [torch.allclose(D @ D.T, torch.eye(2), atol=1e-6) for D in d]
    [True, True, True]
    """

    def __init__(self, offset: Offset, *, layout: Layout = STANDARD) -> None:
        super().__init__(offset.like.new_empty(()).expand(offset.shape), key=offset.key, layout=layout)
        self.offset = offset
        one = offset.like.new_empty(()).expand(self.layout.convolution(offset.shape))
        options = {name: value for name, value in offset.describe().items() if name != "class"}
        if offset.key is None:
            self.parts = nn.ModuleList([type(offset)(one, **options)])
        else:
            keys = [offset.key.fold(str(number)) for number in range(self.matrices)]
            self.parts = nn.ModuleList([type(offset)(one, **options | {"key": key}) for key in keys])

    def forward(self) -> Tensor:
        matrices = [STANDARD.to_matrix(part()) for part in self.parts]
        return self.layout.from_matrix(matrices[0] if len(matrices) == 1 else torch.stack(matrices), self.shape)

    def linear(self, x: Tensor) -> Tensor:
        ys = [part.linear(x) for part in self.parts]  # type: ignore[operator]
        return torch.cat(ys * (self.matrices // len(ys)), dim=-1)

    def has_fast_linear(self) -> bool:
        one = self.parts[0]
        return isinstance(one, Offset) and len(one.shape) == 2 and one.has_fast_linear()

    def label(self) -> str:
        return f"{type(self).__name__}({self.offset.label()})"

    def flops(self, groups: int = 1, *, alpha: bool = False) -> Flops | None:
        each = self.parts[0].flops(groups)  # type: ignore[operator]
        if each is None:
            return None
        scaled, shared = self.matrices * self.fans[0] * alpha, self.matrices - len(self.parts)
        more = Flops(
            scaled, scaled + shared * self.fans[0], 2.0 * scaled
        )  # the gradients of one that is shared are added
        return sum([each] * len(self.parts), more)
