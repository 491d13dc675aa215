"""FourierFT (Gao et al., "Parameter-efficient fine-tuning with discrete Fourier transform", ICML 2024, equations 2-4).

A weight seen as an n_out x n_in matrix is the real part of the inverse discrete Fourier transform of a spectrum that is
theta at a few random frequencies (a, b) and 0 elsewhere:

    w[j, k] = scale / (n_out n_in) sum_i theta_i cos(2 pi (a_i j / n_out + b_i k / n_in)).

The cosines of (a, b) and (-a, -b) are the same. So that U is injective, frequencies here are distinct up to that sign,
where peft draws from the whole plane; there are about n_out n_in / 2 of them, and their cosines are orthogonal. Each of
several matrices in a tensor has its own plane.

Only real 1-D transforms along the last axis are used. U theta costs O(n_out n_in log(n_out n_in)); the product with x
costs O(n_in log n_in + dim + n_out log n_out) a row: between the transforms it is one with a sparse matrix, and keeps
at most 2 dim and n_in + 2 numbers a row for the backward pass.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from subspace._base.autocast import without_autocast
from subspace._base.index import check
from subspace._base.key import Key
from subspace._base.layout import STANDARD, Layout
from subspace._base.linear_map import LinearMap
from subspace._base.plug_in import require_key
from subspace.embeddings.base import Embedding
from subspace.products import Weight
from subspace.products import linear as multiply
from subspace.products.flops import Flops


class FourierFT(Embedding):
    """U theta = scale * Re ifft2 of the spectrum that is theta_i at frequencies[i] = (a, b), 0 <= b <= n_in / 2.

    Args:
        like: The weight, or any floating-point tensor of its shape, dtype and device; its values are not kept.
        dim: The length of theta, at most the number of frequencies, (n_out n_in + s) / 2 with s = 1, 2 or 4 the number
            of those that are their own negatives, for each matrix. Those for a smaller dim are among those for a larger
            one. Or give the index.
        key: Where the frequencies come from.
        scale: By default each column has the one that gives it length 1, so that U^T U = I; a number is peft's
            `scaling` (100 to 300 in the paper), which makes almost all lengths scale / (2 n_out n_in)^1/2.
        index: The frequencies themselves, (dim,) int64, as `frequency_places` numbers them.
        layout: How the weight is a matrix, or several. Patches are ordered as for the DCT.

    Raises:
        TypeError: If not exactly one of dim and index is given.
        ValueError: If dim is more than the number of frequencies, one of the index is none or given twice, or scale is
            not positive and finite.

    >>> U = FourierFT(torch.empty(64, 48), 5, key=Key(0))
    >>> torch.allclose(U.adjoint(U(torch.arange(5.0))), torch.arange(5.0), atol=1e-5)
    True
    """

    pace = 16.0

    def __init__(
        self,
        like: Tensor,
        dim: int | None = None,
        *,
        key: Key | None = None,
        scale: float | None = None,
        index: Tensor | None = None,
        layout: Layout = STANDARD,
    ) -> None:
        if (dim is None) == (index is None):
            raise TypeError(f"exactly one of dim and index must be given, got dim={dim} and index={index}")
        if scale is not None and not 0 < scale < math.inf:
            raise ValueError(f"scale must be positive and finite, got {scale}")
        most = Layout(*layout).matrices(like.shape) * frequency_count(*Layout(*layout).fans(like.shape))
        if index is not None:
            check(index, most)
        elif dim > most:  # type: ignore[operator]
            raise ValueError(f"dim must be in [1, {most}], got {dim}")
        super().__init__(like, dim if index is None else len(index), key=key, layout=layout)  # type: ignore[arg-type]
        self.scale = scale
        self.index = None if index is None else index.to("cpu", copy=True)
        if index is None:
            require_key(key, self)
        self.rebuild()

    def describe(self) -> dict[str, Any]:
        left_out = ("index",) if self.index is None else ("dim", "key")
        return {name: value for name, value in super().describe().items() if name not in left_out}

    def _drawn(self) -> Tensor:
        most = self.matrices * frequency_count(*self.fans)
        return torch.from_numpy(require_key(self.key, self).distinct(most, self.dim))

    def rebuild(self) -> None:
        (n_out, n_in), dtype = self.fans, self.like.dtype
        numel = n_out * n_in
        places = self._drawn() if self.index is None else self.index
        matrix, places = places // frequency_count(n_out, n_in), places % frequency_count(n_out, n_in)
        a, b = _frequencies(places, n_out, n_in)
        alone = ((2 * a) % n_out == 0) & ((2 * b) % n_in == 0)  # their own negatives: cosines of +-1
        unit = (2 - alone.double()).div(numel).sqrt()
        gain = unit if self.scale is None else torch.full_like(unit, self.scale / numel)
        back = 2 * a > n_out  # where cos(2 pi a j / n_out) is the cosine of n_out - a, and the sine is minus its sine
        pair = torch.arange(2, device="cpu")
        device = self.like.device
        self.frequencies = torch.stack([a, b], 1).to(device)
        rows = (matrix * _entries(n_out) + 2 * torch.where(back, n_out - a, a))[:, None].add(pair).flatten()
        columns = (2 * b[:, None] + pair).flatten()
        self._rows, self._columns = rows.to(device), columns.to(device)
        self._gains = torch.stack([gain, gain.where(back, -gain)], 1).to(device, dtype)
        self._squares = (gain / unit).square().to(device, dtype)
        # The product's sparse matrix, of the columns that are not empty; (a, b) and (-a, b) meet in one place of it.
        seen, column = torch.unique(columns, return_inverse=True)
        places, place = torch.unique(rows * len(seen) + column, return_inverse=True)
        self._seen, self._places, self._place = seen.to(device), places.to(device), place.to(device)

    def _spectrum(self, theta: Tensor) -> Tensor:
        """theta times what the two parts of its entry are multiplied by: (..., dim) -> (..., 2 dim)."""
        return (theta.to(self._gains.dtype).unsqueeze(-1) * self._gains).flatten(-2)

    def spectrum(self, theta: Tensor, scaling: float) -> Tensor:
        """theta as peft has it: the entries of the dense spectrum, for its `scaling`."""
        return theta * self._gains[:, 0].to(theta) * (self.fans[0] * self.fans[1] / scaling)

    def forward(self, theta: Tensor) -> Tensor:
        (n_out, n_in), matrices = self.fans, self.matrices
        entries, rows, columns = self._spectrum(theta), matrices * _entries(n_out), _entries(n_in)
        spectrum = entries.new_zeros(columns * rows).index_add(0, self._columns * rows + self._rows, entries)
        waves = _WAVES(spectrum.reshape(columns, matrices, -1), n_out).reshape(columns, matrices * n_out)
        weight = _WAVES(waves.T, n_in).reshape(matrices, n_out, n_in)
        return self.layout.from_matrix(weight, self.shape).to(theta.dtype)

    def adjoint(self, weight: Tensor) -> Tensor:
        (n_out, n_in), matrices = self.fans, self.matrices
        of_inputs = _SPECTRUM(self.layout.to_rows(weight.to(self._gains.dtype)), n_in).T
        spectrum = _SPECTRUM(of_inputs.reshape(-1, matrices, n_out), n_out).flatten()
        entries = spectrum[self._columns * (matrices * _entries(n_out)) + self._rows].reshape(self.dim, 2)
        return (entries * self._gains).sum(1).to(weight.dtype)

    def coordinates(self, weight: Tensor) -> Tensor:
        return (self.adjoint(weight.to(self._gains.dtype)) / self._squares).to(weight.dtype)

    def linear(self, theta: Tensor, x: Tensor) -> Tensor:
        (n_out, n_in), dtype = self.fans, self._gains.dtype
        entries = self._spectrum(theta)
        values = entries.new_zeros(len(self._places)).index_add(0, self._place, entries)
        S = Weight(None, values, self._places, (self.matrices * _entries(n_out), len(self._seen)), "zero")
        with without_autocast(x):
            spectrum = _SPECTRUM(x.to(dtype), n_in).index_select(-1, self._seen)
            return self._outputs(multiply(spectrum, S)).to(x.dtype)

    def _outputs(self, spectrum: Tensor) -> Tensor:
        """(..., matrices _entries(n_out)) -> (..., matrices n_out)."""
        return _WAVES(spectrum.reshape(*spectrum.shape[:-1], self.matrices, -1), self.fans[0]).flatten(-2)

    def linear_each(self, thetas: Tensor, x: Tensor) -> Tensor:
        (n_out, n_in), between = self.fans, (1,) * (x.ndim - 2)
        waves = _SPECTRUM(x.to(self._gains.dtype), n_in).index_select(-1, self._columns)
        entries = self._spectrum(thetas).reshape(len(x), *between, -1)
        zeros = waves.new_zeros(*x.shape[:-1], self.matrices * _entries(n_out))
        return self._outputs(zeros.index_add(-1, self._rows, waves * entries)).to(x.dtype)

    def flops(self, groups: int = 1) -> Flops | None:
        if len(self.shape) != 2:
            return None
        n_out, n_in = self.fans
        transforms = 2.5 * (self.matrices * n_out * math.log2(n_out) + n_in * math.log2(n_in))
        return Flops(transforms + 4.0 * self.dim, transforms + 4.0 * self.dim, 4.0 * self.dim)

    def build_flops(self) -> float:
        return 2.5 * self.shape.numel() * math.log2(self.fans[0] * self.fans[1])


def frequency_count(n_out: int, n_in: int) -> int:
    """How many frequencies (a, b) of an n_out x n_in matrix differ by more than their sign."""
    return (n_out * n_in + (2 - n_out % 2) * (2 - n_in % 2)) // 2


def _frequencies(places: Tensor, n_out: int, n_in: int) -> tuple[Tensor, Tensor]:
    """(a, b) of each place in range(frequency_count(n_out, n_in)).

    First all a of the b strictly between 0 and n_in / 2, then the a up to n_out / 2 of the b that are their own
    negatives.
    """
    between, half = (n_in - 1) // 2 * n_out, n_out // 2 + 1
    rest = places - between
    a = torch.where(rest < 0, places % n_out, rest % half)
    b = torch.where(rest < 0, 1 + places // n_out, rest.div(half, rounding_mode="floor") * (n_in // 2))
    return a, b


def frequency_places(a: Tensor, b: Tensor, n_out: int, n_in: int) -> Tensor:
    """The numbers of frequencies (a, b) of an n_out x n_in matrix, as an `index` has them; (-a, -b) has that of (a, b).

    Those of the m-th of several matrices are m frequency_count(n_out, n_in) more.

    >>> frequency_places(torch.tensor([1, 3, 0]), torch.tensor([2, 3, 0]), 4, 5)
    tensor([5, 5, 8])
    """
    above = 2 * b > n_in
    a, b = torch.where(above, -a % n_out, a), torch.where(above, n_in - b, b)
    alone = (2 * b) % n_in == 0
    a = torch.where(alone & (2 * a > n_out), n_out - a, a)
    rest = (n_in - 1) // 2 * n_out + (b > 0) * (n_out // 2 + 1) + a
    return torch.where(alone, rest, (b - 1) * n_out + a)


def _entries(n: int) -> int:
    return 2 * (n // 2 + 1)


def _spectrum(x: Tensor, n: int) -> Tensor:
    """(..., n) -> (..., _entries(n)): of each frequency up to n / 2, the sum of x cos and that of -x sin."""
    if x.numel() == 0:  # which some FFT libraries refuse
        return _spectrum_like(x, n)
    return torch.view_as_real(torch.fft.rfft(x)).flatten(-2).contiguous()


def _waves(y: Tensor, n: int) -> Tensor:
    """The transpose of `_spectrum`: (..., _entries(n)) -> (..., n)."""
    if y.numel() == 0:
        return _waves_like(y, n)
    weights = y.new_full((n // 2 + 1, 2), 0.5)
    weights[[0, -1] if n % 2 == 0 else [0]] = y.new_tensor([1.0, 0.0])  # their own negatives, which have no sine
    z = torch.view_as_complex(y.contiguous().reshape(*y.shape[:-1], -1, 2) * weights)
    x: Tensor = torch.fft.irfft(z, n, norm="forward").contiguous()
    return x


def _spectrum_like(x: Tensor, n: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], _entries(n))


def _waves_like(y: Tensor, n: int) -> Tensor:
    return y.new_empty(*y.shape[:-1], n)


_SPECTRUM = LinearMap("spectrum", _spectrum, _spectrum_like, "SymInt n")
_WAVES = LinearMap("waves", _waves, _waves_like, "SymInt n")
_SPECTRUM.adjoint, _WAVES.adjoint = _WAVES, _SPECTRUM
