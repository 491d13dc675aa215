"""w = scale T + S and T themselves, about 1 ns an entry: outer products of thin factors instead of cosines.

With i = i1 s + i2 the angle of the DCT splits, cos(a i1 + b(i2)) = cos(a i1) cos(b(i2)) - sin(a i1) sin(b(i2)), and so
do the signs of a Hadamard matrix for s a power of two. The factors, n_out x (n_in / s + s), are made in float64.

On a GPU kernels write w from them at once, and one reads off the gradient to w what theta needs.
"""

from __future__ import annotations

import math

import torch
from torch import Size, Tensor

from subspace._base.constants import keep_constants
from subspace._base.dtypes import at_least_float32
from subspace._base.layout import STANDARD
from subspace._base.matrices import parity_signs
from subspace._base.waves import waves
from subspace.products.geometry import memory_format
from subspace.products.triton import can_take, kernels
from subspace.products.weight import Needs, Weight

SMALL = 1 << 16  # entries of a T worth keeping


def build(w: Weight, like: Tensor) -> Tensor:
    """w, new, with the dtype and device of `like`, and on a GPU its memory format; not differentiable."""
    if _has_kernels(w, like):
        to = torch.empty(w.shape, dtype=like.dtype, device=like.device, memory_format=memory_format(like))
        kernels("matrix").build(w, _factors(w, to.device), to)
        return to
    if w.scale is None:
        dense = torch.zeros(w.shape, dtype=at_least_float32(like.dtype), device=like.device)
    else:
        dense = transform_of(w, like, w.scale)
    dense.view(-1).index_add_(0, w.index, w.values.to(dense.dtype))
    return dense.to(like.dtype)


def read_gradients(gw: Tensor, w: Weight, needs: Needs) -> tuple[Tensor | None, Tensor | None]:
    """The gradients to scale, one element, and values: (k,), as needed, read off that to w."""
    needs = needs._replace(scale=needs.scale and w.scale is not None)
    if _has_kernels(w, gw):
        gw = gw if memory_format(gw) != torch.contiguous_format else gw.contiguous()
        found: tuple[Tensor | None, Tensor | None]
        found = kernels("matrix").read_gradients(gw, w, _factors(w, gw.device), needs)
        return found
    gscale = dot(gw, transform_of(w, gw)) if needs.scale else None
    return gscale, gw.reshape(-1).index_select(0, w.index) if needs.values else None


def dot(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> of tensors of one shape, summed in float32 at least."""
    dtype = at_least_float32(a.dtype)
    return torch.dot(a.reshape(-1).to(dtype), b.reshape(-1).to(dtype))


def _has_kernels(w: Weight, like: Tensor) -> bool:
    return w.matrix is None and can_take(like.device.type, like.dtype)


def _factors(w: Weight, device: torch.device) -> tuple[Tensor, Tensor]:
    """(coarse, fine) in float32, of no terms for T = 0."""
    if w.scale is None:
        return (torch.empty(0, w.shape[0], 1, device=device),) * 2
    return factors(w.shape, w.transform, torch.float32, device)


def transform_of(w: Weight, like: Tensor, scale: Tensor | None = None) -> Tensor:
    """scale T (T for None) of a weight: contiguous, in `at_least_float32(like.dtype)`; new, but for a given T alone."""
    if w.matrix is None:
        return build_transform(w.shape, w.transform, like, scale)
    given = w.matrix.to(at_least_float32(like.dtype)).contiguous()
    return given if scale is None else given * scale.to(given.dtype)


def build_transform(shape: tuple[int, ...], transform: str, like: Tensor, scale: Tensor | None = None) -> Tensor:
    """scale T (T for None), new, in `at_least_float32(like.dtype)` on like's device."""
    arguments = shape, transform, at_least_float32(like.dtype), like.device
    if math.prod(shape) <= SMALL:
        t = _small(*arguments)
        return t.clone() if scale is None else t * scale.to(t)
    return outer(*factors(*arguments), shape, transform, scale)


def outer(coarse: Tensor, fine: Tensor, shape: tuple[int, ...], transform: str, scale: Tensor | None = None) -> Tensor:
    """scale times sum_j coarse[j] (x) fine[j], row by row, as a weight."""
    if scale is not None:
        coarse = coarse * scale.to(coarse)
    product = coarse[0, :, :, None] * fine[0, :, None]
    for j in range(1, len(coarse)):  # by number: an exported loop over no tensors at all cannot be loaded
        product.addcmul_(coarse[j, :, :, None], fine[j, :, None])
    matrix = product.flatten(1)[:, : math.prod(shape[1:])]
    t = STANDARD.from_matrix(matrix, Size(shape)) if transform == "hadamard" else matrix.reshape(shape)
    return t.contiguous()


def split(shape: tuple[int, ...], transform: str, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """(coarse, fine), what `outer` takes."""
    if transform == "hadamard":
        return _hadamard(shape, dtype, device)
    return _dct(shape, dtype, device)


def _whole(shape: tuple[int, ...], transform: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    return outer(*split(shape, transform, dtype, device), shape, transform)


factors = keep_constants(64)(split)
_small = keep_constants(256)(_whole)


def _dct(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    n_out, n_in = STANDARD.fans(Size(shape))
    channels, taps = shape[1], math.prod(shape[2:])
    q, width = max(n_out, n_in), _block(channels)
    rows = torch.arange(n_out, device=device)[:, None]
    starts = 2 * width * torch.arange(-(-channels // width), device=device)
    within = torch.arange(width, device=device)[:, None] + channels * torch.arange(taps, device=device)
    a, b = rows * starts % (4 * q), rows * (2 * within.flatten() + 1) % (4 * q)  # whole turns dropped exactly
    (cos, sin), scaled = (waves(4 * q, 4 * q, scale, dtype, device) for scale in (1.0, math.sqrt(2 / q)))
    coarse = scaled[:, a]
    coarse[0, 0] = math.sqrt(1 / q)  # of the first row, where the sines are 0
    return coarse, torch.stack([cos[b], -sin[b]])


def _hadamard(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    n_out, n_in = STANDARD.fans(Size(shape))
    width = 1 << (n_in.bit_length() // 2)
    rows = torch.arange(n_out, device=device)[:, None]
    starts = width * torch.arange(-(-n_in // width), device=device)
    coarse = parity_signs(rows & starts).to(dtype) / math.sqrt(max(n_out, n_in))
    return coarse[None], parity_signs(rows & torch.arange(width, device=device)).to(dtype)[None]


def _block(channels: int) -> int:
    """A divisor near the square root, so that nothing needs to be cut off; else the square root."""
    root = math.isqrt(channels)
    return next((width for width in range(root, root // 2, -1) if channels % width == 0), root)
