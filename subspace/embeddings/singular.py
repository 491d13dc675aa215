"""The coefficients of a weight between the singular vectors of a fixed one: what it adds to which direction."""

from __future__ import annotations

from torch import Tensor

from subspace._base.frames import completed, singular_frames
from subspace.embeddings.basis import Transform
from subspace.offsets import Offset


class Singular(Transform):
    """U theta = P C Q^T, P and Q all the singular vectors of d, the largest singular value first.

    Those of d's null spaces are completed by fixed ones; of singular vectors whose singular values are equal, those of
    the machine are taken. Of each pair, the entry of the left vector that is largest in magnitude is positive. Costs
    O(numel (n_out + n_in)), and holds n_out^2 + n_in^2 numbers, which d rebuilds.

    Args:
        offset: d; its values when U is made count.

    >>> import torch
    >>> from subspace.offsets import Pretrained
    >>> d = Pretrained(torch.tensor([[0.0, 3.0], [2.0, 0.0]]))
    >>> Singular(d).adjoint(d())
    tensor([3., 0., 0., 2.])
    """

    def __init__(self, offset: Offset) -> None:
        super().__init__(offset.like.new_empty(()).expand(offset.shape))
        self.offset = offset
        self._exact: tuple[Tensor, ...] = ()
        self.rebuild()

    def rebuild(self) -> None:
        if not self._exact and not self.like.is_meta:
            self._exact = tuple(map(completed, singular_frames(self.layout.to_matrix(self.offset()))))
        self.frames = tuple(frame.to(self.like) for frame in self._exact)  # of outputs, of inputs

    def analyse(self, x: Tensor, axis: int) -> Tensor:
        return x @ self.frames[axis].to(x.dtype)

    def synthesise(self, c: Tensor, axis: int) -> Tensor:
        return c @ self.frames[axis].T.to(c.dtype)

    def axis_flops(self, axis: int) -> float:
        return 2.0 * self.fans[axis] ** 2
