"""Small transforms of shuffled inputs: Walsh-Hadamard or DCT in blocks of b, a product in O(q log b) for q max(m, n).

Between `SignedPermutation` (b = 1, up to the outputs' order) and a transform of all inputs: every output sees b of the
inputs. Held are an order and a sign of the inputs, and the order of the outputs.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from subspace._base.dtypes import at_least_float32
from subspace._base.key import Key
from subspace._base.layout import STANDARD, Layout
from subspace._base.plug_in import require_key
from subspace._base.transforms import block_fwht, dct
from subspace.offsets.by_product import ByProduct
from subspace.products.flops import Flops, block_hadamard_flops, dct_flops


class BlockHadamard(ByProduct):
    """d = gain * K T P: P random order and signs of the inputs, T transforms of blocks of b, K the order of outputs.

    Inputs fewer than outputs are filled up with zeros first. Blocks have b inputs each, and after them those of the
    binary digits of what is left, the largest first. Outputs are all blocks' first coefficients, then their second,
    cut after n_out. T is orthogonal for any size, so that d is semi-orthogonal, and |d|_F^2 = gain^2 min(n_in, n_out)
    as for the DCT. Patches are ordered as for the DCT.

    Args:
        like: The weight, or any floating-point tensor of its shape, dtype and device; its values are not kept.
        key: Where order and signs come from.
        block: b, a power of two.
        gain: Of d.
        layout: How the weight is a matrix.

    Raises:
        ValueError: If b is not that.

    >>> d = BlockHadamard(torch.empty(6, 8), key=Key(0), block=4)()
    >>> torch.allclose(d @ d.T, torch.eye(6), atol=1e-6), (d != 0).sum(1).tolist()
    (True, [4, 4, 4, 4, 4, 4])
    """

    def __init__(
        self,
        like: Tensor,
        *,
        key: Key | None = None,
        block: int = 32,
        gain: float = 1.0,
        layout: Layout = STANDARD,
    ) -> None:
        super().__init__(like, key=require_key(key, self), layout=layout)
        self.block, self.gain = self.checked(block), gain
        self.rebuild()

    @classmethod
    def checked(cls, block: int) -> int:
        """The block; ValueError for one that there cannot be."""
        if block < 1 or block & (block - 1):
            raise ValueError(f"block must be a power of two, got {block}")
        return block

    def transform(self, x: Tensor) -> Tensor:
        """T x, of the blocks of the last axis."""
        return block_fwht(x, self.block)

    def pieces(self, n: int) -> list[int]:
        """The lengths of the blocks of n inputs."""
        whole, rest = divmod(n, self.block)
        return [self.block] * whole + [1 << bit for bit in reversed(range(rest.bit_length())) if rest >> bit & 1]

    def transform_flops(self, n: int) -> float:
        """The FLOPs of T for n inputs."""
        return block_hadamard_flops(n, self.block)

    def rebuild(self) -> None:
        key, (n_out, _), q = require_key(self.key, self), self.fans, max(self.fans)
        within = np.concatenate([np.arange(length) for length in self.pieces(q)])
        kept = np.argsort(within, kind="stable")[:n_out]
        order = key.fold("order").permutation(q)
        device = self.like.device
        self.order, self.kept = (torch.from_numpy(places).to(device) for places in (order, kept))
        self.signs = torch.from_numpy(key.fold("signs").signs(q)).to(self.like)

    def linear(self, x: Tensor) -> Tensor:
        wide = F.pad(x.to(at_least_float32(x.dtype)), (0, max(self.fans) - self.fans[1]))
        coefficients = self.transform(wide[..., self.order] * self.signs)
        return (self.gain * coefficients[..., self.kept]).to(x.dtype)

    def flops(self, groups: int = 1, *, alpha: bool = False) -> Flops | None:
        if groups > 1:  # each would need its own transform
            return None
        (m, n), transform = self.fans, self.transform_flops(max(self.fans)) + max(self.fans)
        return Flops(transform + m + m * alpha, transform + n + m * alpha, 2.0 * m * alpha)


class BlockDCT(BlockHadamard):
    """`BlockHadamard` with orthonormal DCTs in place of Walsh-Hadamard transforms, the last block as long as it is.

    Args:
        like: The weight, or any floating-point tensor of its shape, dtype and device; its values are not kept.
        key: Where order and signs come from.
        block: b, at least 1.
        gain: Of d.
        layout: How the weight is a matrix.

    Raises:
        ValueError: If b is not that.

    >>> d = BlockDCT(torch.empty(6, 8), key=Key(0), block=5)()
    >>> torch.allclose(d @ d.T, torch.eye(6), atol=1e-6), sorted((d != 0).sum(1).tolist())[:3]
    (True, [2, 3, 3])
    """

    @classmethod
    def checked(cls, block: int) -> int:
        if block < 1:
            raise ValueError(f"block must be at least 1, got {block}")
        return block

    def transform(self, x: Tensor) -> Tensor:
        count, rest = divmod(x.shape[-1], self.block)
        whole = count * self.block
        blocks = x[..., :whole].reshape(*x.shape[:-1], count, self.block)
        parts = ([dct(blocks).flatten(-2)] if count else []) + ([dct(x[..., whole:])] if rest else [])
        return torch.cat(parts, -1)

    def pieces(self, n: int) -> list[int]:
        whole, rest = divmod(n, self.block)
        return [self.block] * whole + [rest] * (rest > 0)

    def transform_flops(self, n: int) -> float:
        return sum(map(dct_flops, self.pieces(n)))
