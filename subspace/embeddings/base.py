"""The interface of embeddings: a fixed injective linear map U from R^dim into the space of a weight.

Only `forward` is abstract. The other products have defaults that are exact and slow, and are the reference that every
override is tested against.
"""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy  # loads its parts when they are used
import torch
import torch.nn.functional as F
from torch import Tensor

from subspace._base.dtypes import at_least_float32
from subspace._base.key import Key
from subspace._base.layout import STANDARD, Layout
from subspace._base.plug_in import PlugIn
from subspace.offsets import Offset
from subspace.products.flops import Flops


class Line(NamedTuple):
    """U theta = theta scale d."""

    offset: Offset
    scale: float


class Embedding(PlugIn, abc.ABC):
    """A fixed injective linear map U: R^dim -> R^shape, or, with `of`, numel of the `of` rows of an injective one.

    Only `forward` is abstract: it makes an embedding complete. What else an embedding can say of itself makes it fast.

    Args:
        like: The weight, or any floating-point tensor of its shape, dtype and device; its values are not kept.
        dim: The length of theta.
        key: Where what is random comes from.
        of: The rows of a U that several tensors share; numel of `like` by default.
        layout: How the weight is a matrix, for a U that is made of one.

    Raises:
        ValueError: If dim is outside [least_dim, of].
    """

    least_dim = 1
    pace = 1.0  # how many times as long as one of a matrix product a FLOP of `linear` takes
    moves = False  # whether a method moves the support: a state_dict then keeps it, in the same number of bytes always

    def __init__(
        self, like: Tensor, dim: int, *, key: Key | None = None, of: int | None = None, layout: Layout = STANDARD
    ) -> None:
        super().__init__(like, key=key, layout=layout)
        self.of = self.shape.numel() if of is None else of
        if not self.least_dim <= dim <= self.of:
            raise ValueError(f"dim must be in [{self.least_dim}, {self.of}], got {dim}")
        self.dim = int(dim)

    if TYPE_CHECKING:

        def __call__(self, theta: Tensor) -> Tensor: ...

    @abc.abstractmethod
    def forward(self, theta: Tensor) -> Tensor:
        """U theta: (dim,) -> shape."""

    def adjoint(self, weight: Tensor) -> Tensor:
        """U^T w: shape -> (dim,)."""
        theta: Tensor = torch.func.vjp(self, weight.new_zeros(self.dim))[1](weight)[0]
        return theta

    def coordinates(self, weight: Tensor) -> Tensor:
        """U^+ w, the theta that minimises |U theta - w|: shape -> (dim,).  LSMR (Fong and Saunders 2011)."""
        compute = at_least_float32(weight.dtype)

        def tensor(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values.ravel()).to(weight.device, weight.dtype)

        def array(values: Tensor) -> np.ndarray:
            return values.detach().flatten().cpu().double().numpy()

        operator = scipy.sparse.linalg.LinearOperator(
            (weight.numel(), self.dim),
            matvec=lambda theta: array(self(tensor(theta))),
            rmatvec=lambda w: array(self.adjoint(tensor(w).reshape(self.shape))),
            dtype=np.float64,
        )
        eps = torch.finfo(compute).eps
        limits = {"atol": eps, "btol": eps, "conlim": 0, "maxiter": 10 * self.dim + 100}
        return tensor(scipy.sparse.linalg.lsmr(operator, array(weight), **limits)[0])

    def linear(self, theta: Tensor, x: Tensor) -> Tensor:
        """x (U theta)^T, for a weight of two axes: (dim,), (..., n_in) -> (..., n_out). By default U theta is built."""
        return F.linear(x, self.layout.to_rows(self(theta)).to(x.dtype))

    def linear_beside(self, offset: Offset, theta: Tensor, x: Tensor) -> Tensor:
        """x (d + U theta)^T, for an offset d, as `linear`: by default the sum of its product and that with U theta."""
        return offset.linear(x) + self.linear(theta, x)

    def linear_each(self, thetas: Tensor, x: Tensor) -> Tensor:
        """x_i (U theta_i)^T for every i of the first axes: (n, dim), (n, ..., n_in) -> (n, ..., n_out)."""
        y: Tensor = torch.func.vmap(self.linear)(thetas, x)
        return y

    def has_fast_linear(self) -> bool:
        """Whether `linear` takes less than to build U theta: by default, whether a class has its own."""
        return type(self).linear is not Embedding.linear

    def parts(self) -> list[Embedding]:
        """The U_1, U_2, ... that stand side by side in U, by default U alone; each has dim numbers of theta in turn."""
        return [self]

    def direction(self) -> Line | None:
        """The d and the scale of U theta = theta scale d, for a U of that kind; None for any other."""
        return None

    def alphas(self) -> int:
        """How many of theta's numbers scale an offset."""
        return sum(U.direction() is not None for U in self.parts())

    def support(self) -> Tensor | None:
        """The flat places in w of theta's numbers for a U of unit columns, (dim,) int64 in their order; else None.

        It is the tensor that U looks at, and methods that move U write it in place.
        """
        return None

    def sparse_part(self) -> Embedding | None:
        """The U whose support says which of the `coefficients` of w theta is, and that methods move; None for none."""
        return None if self.support() is None else self

    def coefficients(self, weight: Tensor) -> Tensor:
        """w in the orthonormal basis that the sparse part is in, by default its entries: shape -> (numel,)."""
        return weight.reshape(-1)

    def columns(self, kept: Tensor) -> Embedding:
        """The U of some numbers of theta alone, at sorted places; TypeError for one that is not made for it."""
        raise TypeError(f"U must be sparse or a basis to keep some of its columns, got {self.label()}")

    def is_drawn(self) -> bool:
        """Whether the support is the one that the key stands for, so that nothing has to keep it."""
        return False

    def random_index(self) -> Tensor:
        """The sorted support that the key stands for, on the CPU, for a U that can be drawn: (dim,) int64."""
        raise NotImplementedError

    def keeps_entries(self) -> bool:
        """Whether each number of theta is an entry of w."""
        return self.support() is not None

    def flops(self, groups: int = 1) -> Flops | None:
        """The FLOPs of a product with U theta at each row or pixel; None if U theta has to be built.

        groups: of the convolution.
        """
        return None

    def flops_beside(self, offset: Offset) -> Flops | None:
        """What `linear_beside` takes beside the product with d, as `flops`."""
        return self.flops()

    def build_flops(self) -> float:
        """The FLOPs of building U theta once."""
        return 2.0 * self.shape.numel() * self.dim
