"""k-sparse disjoint embedding: each theta is one entry of the weight; pruning, lottery tickets, the S of DCTpS.

O(dim) memory: the index. Its columns are distinct unit vectors, so U^T U = I and U^+ = U^T, a gather.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from subspace._base.dtypes import at_least_float32
from subspace._base.exporting import is_exporting
from subspace._base.index import check
from subspace._base.key import Key
from subspace._base.plug_in import require_key
from subspace.embeddings.base import Embedding
from subspace.products import Weight
from subspace.products import linear as multiply
from subspace.products.flops import Flops
from subspace.products.sparse_index import version


class Sparse(Embedding):
    """(U theta)[index[j]] = theta[j], all else 0; index flat, int64, distinct.

    dim may be 0: at extreme sparsity a budget leaves tensors without any entry. Methods that move U write the index in
    place; where the key still rebuilds it, it is in no state_dict and no checkpoint.

    Args:
        like: The weight, or any floating-point tensor of its shape, dtype and device; its values are not kept.
        dim: How many places, drawn at random (those for a smaller dim are among them); or give the index.
        key: Where they come from.
        index: The places themselves: (dim,) int64 or int32, in any order, which is that of theta.

    Raises:
        TypeError: If not exactly one of dim and index is given, or the index is no 1-d tensor of integers.
        ValueError: If a place is out of range or given twice.

    >>> Sparse(torch.empty(2, 2), index=torch.tensor([3, 1]))(torch.tensor([5.0, 7.0]))
    tensor([[0., 7.],
            [0., 5.]])
    """

    index: Tensor
    given = ("index",)
    least_dim = 0

    def __init__(
        self, like: Tensor, dim: int | None = None, *, key: Key | None = None, index: Tensor | None = None
    ) -> None:
        if (dim is None) == (index is None):
            raise TypeError(f"exactly one of dim and index must be given, got dim={dim} and index={index}")
        if index is not None:
            index = _checked(index, like)
        super().__init__(like, dim if index is None else len(index), key=key)  # type: ignore[arg-type]
        drawn = index is None
        index = self.random_index() if index is None else index
        self.index = index.to("cpu" if like.is_meta else like.device, copy=True)
        self._drawn = None if self.index.is_inference() else version(self.index), drawn

    def random_index(self) -> Tensor:
        """The sorted index that the key stands for: (dim,) int64, on the CPU."""
        places = require_key(self.key, self).distinct(self.shape.numel(), self.dim)
        return torch.from_numpy(places).sort().values

    def describe(self) -> dict[str, Any]:
        given = {"dim": self.dim, "key": self.key} if self.is_drawn() else {"index": self.index}
        return {"class": type(self).__name__} | given

    def is_drawn(self) -> bool:
        if self.index.is_inference():  # which counts no versions
            return self.key is not None and torch.equal(self.index.cpu(), self.random_index())
        if self._drawn[0] != (now := version(self.index)):
            self._drawn = now, self.key is not None and torch.equal(self.index.cpu(), self.random_index())
        return self._drawn[1]

    def forward(self, theta: Tensor) -> Tensor:
        return theta.new_zeros(self.shape.numel()).scatter(0, self.index, theta).reshape(self.shape)

    def adjoint(self, weight: Tensor) -> Tensor:
        return weight.reshape(-1)[self.index]

    coordinates = adjoint

    def linear(self, theta: Tensor, x: Tensor) -> Tensor:
        if is_exporting():
            return super().linear(theta, x)
        return multiply(x, Weight(None, theta, self.index, tuple(self.shape), "zero"))

    def linear_each(self, thetas: Tensor, x: Tensor) -> Tensor:
        (n_out, n_in), between, compute = self.shape, (1,) * (x.ndim - 2), at_least_float32(x.dtype)
        products = x[..., self.index % n_in].to(compute) * thetas.to(compute).reshape(len(x), *between, self.dim)
        y = products.new_zeros(*x.shape[:-1], n_out).index_add(-1, self.index // n_in, products)
        return y.to(x.dtype)

    def columns(self, kept: Tensor) -> Embedding:
        return Sparse(self.like.new_empty(()).expand(self.shape), index=self.index[kept])

    def support(self) -> Tensor:
        return self.index

    def flops(self, groups: int = 1) -> Flops:
        each = 2.0 * self.dim
        return Flops(each, each, each)


def _checked(index: Tensor, like: Tensor) -> Tensor:
    if index.ndim != 1 or index.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"index must be a 1-d int32 or int64 tensor, got {index.ndim}-d {index.dtype}")
    check(index.long(), like.numel())
    return index.long()
