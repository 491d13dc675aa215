"""U theta = L R M^T with fixed frames L, M and theta = R: LoRA-XS, LoRA-FA, and what lies between.

LoRA-XS (Banaei et al. 2024) trains R between singular vectors of the pretrained weight. LoRA-FA (Zhang et al. 2023)
trains B of B M^T, L being the identity; with singular vectors for M, in the frame of PiSSA (Meng et al. 2024).

A product costs O(s n_in + r s + r n_out) a row, for r columns of L and s of M, and never builds the weight. Held are
the frames, n_out r + n_in s numbers, which the key or d rebuilds unless they are given.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from subspace._base.dtypes import at_least_float32
from subspace._base.frames import random_frame, singular_frames
from subspace._base.key import Key
from subspace._base.layout import STANDARD, Layout
from subspace._base.plug_in import require_key
from subspace.embeddings.base import Embedding
from subspace.offsets import Offset
from subspace.products.flops import Flops


class LowRank(Embedding):
    """U theta = L R M^T, theta the entries of R row by row; U theta is of rank min(left, right) at most.

    A frame is the identity, given, uniform orthonormal columns drawn from the key, or, of an `offset` d, its first
    singular vectors. U^T U = I. Of singular vectors whose singular values are equal, those of the machine are taken; of
    each pair, the entry of the left one that is largest in magnitude is positive. Patches are ordered as for the DCT.

    Args:
        like: The weight, or any floating-point tensor of its shape, dtype and device; its values are not kept.
        left: How many columns L has; or L itself, of orthonormal columns; None for the identity.
        right: How many columns M has; or M itself; None for the identity.
        key: Where random frames come from.
        offset: d, of whose singular vectors the frames are to be; its values when U is made count.
        layout: How the weight is a matrix. Each of several has its own R, row by row in theta, and its own singular
            vectors; random frames are the same for all.

    Raises:
        TypeError: If a random frame has no key.
        ValueError: If a frame is to have no column, or more than it has rows, or more than the rank of d, or one that
            is given has others than orthonormal columns.

    >>> import torch
    >>> U = LowRank(torch.empty(8, 6), 2, 3, key=Key(0))
    >>> U.dim, int(torch.linalg.matrix_rank(U(torch.arange(6.0))))
    (6, 2)
    """

    def __init__(
        self,
        like: Tensor,
        left: int | Tensor | None = None,
        right: int | Tensor | None = None,
        *,
        key: Key | None = None,
        offset: Offset | None = None,
        layout: Layout = STANDARD,
    ) -> None:
        matrices = Layout(*layout)
        n_out, n_in = matrices.fans(like.shape)
        frames = {"left": (left, n_out), "right": (right, n_in)}
        counts = {name: _columns(name, frame, rows) for name, (frame, rows) in frames.items()}
        self.rows_of_theta, self.columns_of_theta = counts["left"] or n_out, counts["right"] or n_in
        dim = matrices.matrices(like.shape) * self.rows_of_theta * self.columns_of_theta
        super().__init__(like, dim, key=key, layout=layout)
        if offset is not None and offset.shape != like.shape:
            raise ValueError(f"offset must have shape {tuple(like.shape)}, got {tuple(offset.shape)}")
        if offset is None and (isinstance(left, int) or isinstance(right, int)):
            require_key(key, self)
        self.given = tuple(name for name, (frame, _) in frames.items() if isinstance(frame, Tensor))
        self.left, self.right = (_held(frame, like) for frame in (left, right))
        self.offset = offset
        self._exact: tuple[Tensor | None, Tensor | None] | None = None
        self.rebuild()

    def rebuild(self) -> None:
        if self._exact is None and not self.like.is_meta:
            pairs = [] if self.offset is None else [*map(singular_frames, self._rows(self.offset()))]
            self._exact = self._frame("left", 0, pairs), self._frame("right", 1, pairs)
        self.L, self.M = (None if f is None else f.to(self.like) for f in self._exact or (None, None))

    def _frame(self, name: str, side: int, pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor | None:
        """L or M, in float64 where it is made here. pairs: the singular vectors of each matrix of d."""
        frame: int | Tensor | None = getattr(self, name)
        if frame is None or isinstance(frame, Tensor):
            return frame
        if self.offset is None:
            return random_frame(require_key(self.key, self).fold(name), self.fans[side], frame)
        if (most := min(u.shape[1] for u, _ in pairs)) < frame:
            raise ValueError(f"{name} must be at most {most}, the rank of d, got {frame}")
        frames = torch.stack([pair[side][:, :frame] for pair in pairs])
        return frames if self.matrices > 1 else frames[0]

    def _rows(self, weight: Tensor) -> Tensor:
        return self._matrices(weight).reshape(-1, *self.fans)

    def _matrices(self, weight: Tensor) -> Tensor:
        """(n_out, n_in), or (matrices, n_out, n_in) of several."""
        W = self.layout.to_matrix(weight)
        return W.reshape(self._batch() + self.fans)

    def _batch(self) -> tuple[int, ...]:
        return (self.matrices,) if self.matrices > 1 else ()

    def forward(self, theta: Tensor) -> Tensor:
        W = self._core(theta)
        W = W if self.L is None else self.L @ W
        W = W if self.M is None else W @ self.M.mT
        return self.layout.from_matrix(W, self.shape).to(theta.dtype)

    def _core(self, theta: Tensor) -> Tensor:
        return theta.to(at_least_float32(theta.dtype)).reshape(
            *self._batch(), self.rows_of_theta, self.columns_of_theta
        )

    def adjoint(self, weight: Tensor) -> Tensor:
        W = self._matrices(weight).to(at_least_float32(weight.dtype))
        W = W if self.L is None else self.L.mT @ W
        return (W if self.M is None else W @ self.M).reshape(-1).to(weight.dtype)

    coordinates = adjoint

    def linear(self, theta: Tensor, x: Tensor) -> Tensor:
        if self.matrices > 1:
            return super().linear(theta, x)
        R = self._core(theta)
        z = x.to(R.dtype)
        z = (z if self.M is None else z @ self.M) @ R.T
        return (z if self.L is None else z @ self.L.T).to(x.dtype)

    def has_fast_linear(self) -> bool:
        return self.matrices == 1 and sum(self._products()) < self.shape.numel()

    def _products(self) -> tuple[int, int, int]:
        """The multiplications of a row with M, with R and with L."""
        (n_out, n_in), r, s = self.fans, self.rows_of_theta, self.columns_of_theta
        return n_in * s * (self.right is not None), r * s, n_out * r * (self.left is not None)

    def flops(self, groups: int = 1) -> Flops | None:
        if groups > 1 or not self.has_fast_linear():
            return None
        of_M, of_R, of_L = (2.0 * count for count in self._products())
        return Flops(of_M + of_R + of_L, of_R + of_M, of_R + of_L)

    def build_flops(self) -> float:
        _, r_s, of_L = self._products()
        n_out, n_in = self.fans
        of_M = n_out * n_in if self.right is not None else 0
        return self.matrices * (2.0 * (of_L + of_M) * self.columns_of_theta + r_s)


def _held(frame: int | Tensor | None, like: Tensor) -> int | Tensor | None:
    """A copy of a frame that is given."""
    if not isinstance(frame, Tensor):
        return frame
    copy = frame.detach().to("cpu" if like.is_meta else like.device, copy=True)
    return copy.contiguous()  # products are rounded as the memory lies


def _columns(name: str, frame: int | Tensor | None, rows: int) -> int | None:
    """How many columns a frame has; None for the identity."""
    if isinstance(frame, Tensor):
        if frame.ndim != 2 or not frame.is_floating_point() or len(frame) != rows or not 1 <= frame.shape[1] <= rows:
            raise ValueError(f"{name} must have {rows} rows and 1 to {rows} columns, got {tuple(frame.shape)}")
        products = frame.double().mT @ frame.double()
        if not bool(((products - torch.eye(len(products), device=products.device)).abs() < 1e-4).all()):
            raise ValueError(f"{name} must have orthonormal columns, got others")
        return frame.shape[1]
    if frame is not None and not 1 <= frame <= rows:
        raise ValueError(f"{name} must be in [1, {rows}], the rows of its frame, got {frame}")
    return frame
