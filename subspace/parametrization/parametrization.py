"""theta -> d + U theta, as `torch.nn.utils.parametrize` takes it, and what identifies it in a state_dict."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from subspace._base.autocast import without_autocast
from subspace._base.lineage import Lineage
from subspace._base.written import warn_if_written
from subspace._identity.members import check_members, signs_of
from subspace._identity.state import Identity, Supports, exchange
from subspace.embeddings import Embedding
from subspace.offsets import Offset
from subspace.products.geometry import in_last_format

if TYPE_CHECKING:
    from typing_extensions import Self

WRITTEN = (
    "what was written in place into a registered tensor is lost: it is d + U theta, computed at every read; write into "
    "theta, or assign the module's attribute, which takes the nearest point of the subspace"
)


class SubspaceParametrization(nn.Module):
    """theta -> d + U theta; its right inverse is w -> U^+ (w - d), the nearest point of the subspace.

    Args:
        offset: d.
        embedding: U.
        dtype: Of w; by default the one that d and U are computed in, float32 at least.
    """

    def __init__(self, offset: Offset, embedding: Embedding, dtype: torch.dtype | None = None) -> None:
        if offset.shape != embedding.shape:
            raise ValueError(
                f"offset and embedding must have one shape, got {tuple(offset.shape)} and {tuple(embedding.shape)}"
            )
        super().__init__()
        self.offset, self.embedding = offset, embedding
        self.like = offset.like.new_empty(0, dtype=dtype)  # carries w's dtype
        self.is_channels_last = False  # the memory format of w
        self.column = _column_of(offset, embedding)
        self.start: Tensor | None = None  # of a theta on the meta device, for `initialize`
        self.first: Tensor | None = None  # theta, while `register` hands it over
        self.products: Any = None  # how a structured layer goes without w
        self._identity: tuple[object, Identity, bytes] | None = None
        self._sign()
        self.lineage = Lineage()

    @property
    def dim(self) -> int:
        """The length of theta."""
        return self.embedding.dim

    def forward(self, theta: Tensor) -> Tensor:
        """d + U theta, rounded once: (dim,) -> shape."""
        self.check_members()
        self.lineage.check(theta)
        with without_autocast(theta):
            wide = self._wide(theta)
            if self.column is None:
                w = self.offset() + self.embedding(wide)
            else:  # d is built once
                at, length = self.column
                w = self.embedding(wide + F.pad(wide.new_full((1,), length), (at, self.dim - 1 - at)))
            w = w.to(self.like.dtype)
            w = in_last_format(w) if self.is_channels_last else w
        warn_if_written(w, WRITTEN)
        return w

    def nearest(self, weight: Tensor) -> Tensor:
        """U^+ (w - d), the theta of the nearest point: shape -> (dim,), in float32 at least."""
        self.lineage.end()  # what is assigned is of this U
        with without_autocast(weight):
            return self.embedding.coordinates(self._wide(weight) - self.offset())

    def right_inverse(self, weight: Tensor) -> Tensor:
        """As `nearest`, in the dtype of w, as torch has it."""
        return self.nearest(weight).to(weight.dtype) if self.first is None else self.first

    def linear(self, theta: Tensor, x: Tensor) -> Tensor:
        """x w^T, for a w of two axes: (dim,), (..., n_in) -> (..., n_out)."""
        self.check_members()
        return self.embedding.linear_beside(self.offset, self._wide(theta), x)

    def is_linear_faster(self, rows: int) -> bool:
        """Whether `linear` and its gradients take less than building w, its product and gradients, for that many rows.

        By their FLOPs, with what a plug-in says of its pace; where one says nothing, its product is the faster one.
        """
        d, U, entries = self.offset, self.embedding, self.offset.shape.numel()
        if (of_U := U.flops_beside(d)) is None:
            return True
        structure, of_d = d.structure(), d.flops()
        if structure is not None and structure.matrix is not None:
            fixed = 4.0 * entries
        elif of_d is not None:
            fixed = of_d.training * U.pace
        else:
            return True
        built = 6.0 * entries * rows + 2 * U.build_flops() * U.pace
        return rows * (fixed + of_U.training * U.pace) <= built

    def _wide(self, tensor: Tensor) -> Tensor:
        """The tensor in the dtype that d and U are computed in."""
        return tensor.to(self.embedding.like.dtype)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.like = fn(self.like)
        self._identity = None  # it names tensors that may be gone
        self._hold_signs()
        return self

    def check_members(self) -> None:
        """Raise ValueError under vmap for members of several d and U, which would all get those of this module."""
        signs = cast(Tensor, self._buffers["signs"])
        if torch._C._functorch.is_batchedtensor(signs):
            check_members(signs, self._signs, self.embedding)

    def _sign(self) -> None:
        self._signs = signs_of(self.offset, self.embedding)
        self._hold_signs()

    def _hold_signs(self) -> None:
        device = "cpu" if self.offset.like.is_meta else self.offset.like.device
        signs = torch.tensor(self._signs, dtype=torch.float32, device=device)
        self.register_buffer("signs", signs, persistent=False)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_identity": None}

    def get_extra_state(self) -> Tensor:
        """What identifies d and U, and a support that no key stands for: (n,) uint8, a copy."""
        content = torch.from_numpy(np.frombuffer(self._known()[1], np.uint8).copy())
        return content if self.offset.like.is_meta else content.to(self.offset.like.device)

    def set_extra_state(self, state: Tensor) -> None:
        """Take over the support; raises ValueError, with all as it was, if d and U differ in anything else."""
        if self.like.is_meta and isinstance(state, Tensor) and not state.is_meta:  # theta has been assigned there
            self._apply(lambda t: torch.empty_like(t, device=state.device) if t.is_meta else t)
        exchange(self.checked(state))
        self._sign()
        self.lineage.end()

    def checked(self, state: Tensor) -> Supports:
        """The supports in an extra state; raises ValueError unless d, and U with them, are the ones that it is of."""
        saved = Identity.from_tensor(state)
        supports = saved.supports(self.offset, self.embedding)
        saved.check(self.identity(), "d" if supports else "dU")
        before = exchange(supports)
        try:
            saved.check(self.identity())
        finally:
            exchange(before)
        return supports

    def identity(self) -> Identity:
        """What tells this d and U from others."""
        return self._known()[0]

    @contextmanager
    def same_identity(self) -> Iterator[None]:
        """Whatever the block does to the tensors that d and U hold, their numbers stay: nothing is computed anew."""
        known = self._known()
        yield
        self._identity = self._stamp(), *known

    def _known(self) -> tuple[Identity, bytes]:
        """The identity, and as bytes, found once for as long as nothing is written to what d and U hold."""
        stamp = self._stamp()
        if stamp is None or self._identity is None or self._identity[0] != stamp:
            found = Identity.of(self.offset, self.embedding, self.like.dtype)
            self._identity = stamp, found, found.to_bytes()
        return self._identity[1:]

    def _stamp(self) -> object | None:
        """Another one after every write to what d and U hold; None where writes are not counted."""
        tensors = [t for part in self.modules() for t in vars(part).values() if isinstance(t, Tensor)]
        if any(t.is_inference() for t in tensors):
            return None
        supports = [U.moves for U in self.modules() if isinstance(U, Embedding)]
        plain = [t for t in tensors if type(t) is Tensor and t.layout == torch.strided]
        return [(id(t), t._version) for t in tensors], [t.data_ptr() for t in plain], supports


THETA_AND_EXTRA = ("original", "0._extra_state")


def _column_of(offset: Offset, embedding: Embedding) -> tuple[int, float] | None:
    """Which column of U d is a multiple of, and which, where both say that they are of one transform; else None."""
    d, at = offset.structure(), 0
    for U in embedding.parts():
        line = U.direction()
        along = None if line is None else line.offset.structure()
        if d and line and along and along.gain and not d.is_zero and d.has_transform_of(along):
            return at, d.gain / (along.gain * line.scale)
        at += U.dim
    return None
