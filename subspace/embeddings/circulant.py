"""C3A (Chen et al., "Parameter-efficient fine-tuning via circular convolution", 2024): circulant blocks.

A product costs O(b log b) for each of the blocks' inputs and outputs, and 4 numel / b multiplications between them, and
never builds the weight. Nothing is held.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from subspace._base.dtypes import at_least_float32
from subspace._base.layout import STANDARD, Layout
from subspace.embeddings.base import Embedding
from subspace.products.flops import Flops, fft_flops


class Circulant(Embedding):
    """Every b x b block of the weight's matrix is circulant, W[o, i] = scale theta[(o - i) mod b]; dim = numel / b.

    The columns are orthogonal, as no two share a weight. Patches are ordered as for the DCT; a block of rank up to b.

    Args:
        like: The weight, or any floating-point tensor of its shape, dtype and device; its values are not kept.
        block: b, which divides the numbers of outputs and of inputs.
        scale: By default b^-1/2, which gives every column length 1, so that U^T U = I; C3A's is 1.
        layout: How the weight is a matrix; each of several has its own blocks.

    Raises:
        ValueError: If b divides one of the two numbers not, or scale is not positive and finite.

    >>> Circulant(torch.empty(2, 4), 2, scale=1.0)(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    tensor([[1., 2., 3., 4.],
            [2., 1., 4., 3.]])
    """

    pace = 16.0

    def __init__(self, like: Tensor, block: int, *, scale: float | None = None, layout: Layout = STANDARD) -> None:
        n_out, n_in = Layout(*layout).fans(like.shape)
        if scale is not None and not 0 < scale < math.inf:
            raise ValueError(f"scale must be positive and finite, got {scale}")
        if block < 1 or n_out % block or n_in % block:
            raise ValueError(f"block must divide {n_out} outputs and {n_in} inputs, got {block}")
        super().__init__(like, like.numel() // block, layout=layout)
        self.block, self.scale = block, scale
        self.gain = block**-0.5 if scale is None else scale

    def _blocks(self, theta: Tensor) -> Tensor:
        """The numbers of each block, scaled: (rows and columns of blocks, b), after an axis of several matrices."""
        n_out, n_in = self.fans
        wide = self.gain * theta.to(at_least_float32(theta.dtype))
        return wide.reshape(*self._batch(), n_out // self.block, n_in // self.block, self.block)

    def _batch(self) -> tuple[int, ...]:
        return (self.matrices,) if self.matrices > 1 else ()

    def forward(self, theta: Tensor) -> Tensor:
        steps = torch.arange(self.block, device=theta.device)
        entries = self._blocks(theta)[..., (steps[:, None] - steps) % self.block]
        return self.layout.from_matrix(entries.transpose(-3, -2).reshape(self._batch() + self.fans), self.shape).to(
            theta.dtype
        )

    def adjoint(self, weight: Tensor) -> Tensor:
        n_out, n_in = self.fans
        b, steps = self.block, torch.arange(self.block, device=weight.device)
        wide = self.layout.to_matrix(weight).to(at_least_float32(weight.dtype))
        blocks = wide.reshape(*self._batch(), n_out // b, b, n_in // b, b).transpose(-3, -2)
        turned = blocks[..., (steps[:, None] + steps) % b, steps]  # [j, i]: W[j + i, i], where theta_j is
        return (self.gain * turned.sum(-1)).reshape(-1).to(weight.dtype)

    def coordinates(self, weight: Tensor) -> Tensor:
        return self.adjoint(weight) / (self.gain**2 * self.block)

    def linear(self, theta: Tensor, x: Tensor) -> Tensor:
        if self.matrices > 1:
            return super().linear(theta, x)
        blocks, b = self._blocks(theta), self.block
        waves = torch.fft.rfft(x.to(blocks.dtype).reshape(*x.shape[:-1], blocks.shape[1], b))
        products = torch.einsum("...qf,pqf->...pf", waves, torch.fft.rfft(blocks))
        y: Tensor = torch.fft.irfft(products, b).flatten(-2)
        return y.to(x.dtype)

    def has_fast_linear(self) -> bool:
        return self.matrices == 1

    def flops(self, groups: int = 1) -> Flops | None:
        if groups > 1 or self.matrices > 1:
            return None
        (n_out, n_in), b = self.fans, self.block
        between = 8.0 * (n_out // b) * (n_in // b) * (b // 2 + 1)
        of_inputs, of_outputs = (n // b * fft_flops(b) for n in (n_in, n_out))
        return Flops(of_inputs + between + of_outputs, between + of_inputs, between + of_outputs)

    def build_flops(self) -> float:
        return self.dim
