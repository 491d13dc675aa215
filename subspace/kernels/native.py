"""The compiled kernels (cpp/), where a compiler was there at installation; every other route works without them.

They are built once per instruction set; the best that this processor has is loaded. The environment variable
SUBSPACE_NATIVE names another ("baseline", "avx2", "avx512"), or none of them ("0").
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from subspace.kernels.sparse import of_matrix

INTERFACE = 3  # of the functions below; a library of another number is of another version of this package
TRANSFORMS = {"zero": 0, "dct": 1, "hadamard": 2}
SETS = {"AVX512": ("avx512", "avx2", "baseline"), "AVX2": ("avx2", "baseline")}  # by torch's name for the processor

_I, _N, _P, _F = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p, ctypes.c_float
_SIZES: list[Any] = [_N, _N, _N, _N, _I, _F]  # rows, pixels, n_out, n_in, transform, scale


@functools.cache
def _loaded() -> tuple[ctypes.CDLL | None, str]:
    return _load(os.environ.get("SUBSPACE_NATIVE", ""))


@functools.cache
def _load(wanted: str) -> tuple[ctypes.CDLL | None, str]:
    if wanted == "0":
        return None, "switched off by SUBSPACE_NATIVE=0"
    names = (wanted,) if wanted else SETS.get(torch.backends.cpu.get_cpu_capability(), ("baseline",))
    for name in names:
        for path in sorted(Path(__file__).parent.glob(f"native_{name}.*")):
            try:
                found = ctypes.CDLL(str(path))
            except OSError as error:
                return None, f"{path.name} cannot be loaded: {error}"
            if found.subspace_interface() != INTERFACE:
                return None, f"{path.name} is of another version: install this package again"
            found.subspace_smooth.argtypes = [_N]
            found.subspace_rows_forward.argtypes = [_P, _P, *_SIZES, _P, _P, _P, _N, _I]
            found.subspace_rows_backward.argtypes = [_P, _P, _P, _P, _P, *_SIZES, _P, _P, _P, _P, _N, _I]
            return found, name
    return None, f"not built for {' or '.join(names)}: no C++ compiler when this package was installed"


def library() -> ctypes.CDLL | None:
    """The compiled kernels, if they are there."""
    return _loaded()[0]


def available() -> bool:
    """Whether the compiled kernels are there."""
    return library() is not None


def status() -> str:
    """The instruction set in use, or in a sentence why there are no compiled kernels."""
    return _loaded()[1]


def takes(shape: tuple[int, ...], transform: str, x: Tensor) -> bool:
    """Whether `forward` and `backward` can do this: not float64, on the CPU, q of prime factors up to 31."""
    if not available() or x.device.type != "cpu" or x.dtype == torch.float64:
        return False
    return transform != "dct" or _smooth(max(_fans(shape)))


def _fans(shape: tuple[int, ...]) -> tuple[int, int]:
    return shape[0], math.prod(shape[1:])


@functools.cache
def _smooth(q: int) -> bool:
    found = library()
    return found is not None and bool(found.subspace_smooth(q))


def forward(
    x: Tensor,
    scale: Tensor | None,
    values: Tensor,
    index: Tensor,
    shape: tuple[int, ...],
    transform: str,
) -> Tensor:
    """x w^T in float32: (rows, n_in) -> (rows, n_out), or over the channels: (N, C, pixels) -> (N, C_out, pixels)."""
    n_out, n_in = _fans(shape)
    x, values = x.float().contiguous(), values.float().contiguous()
    y = x.new_empty(x.shape[0], n_out, *x.shape[2:])
    if y.numel():
        bags = of_matrix(index, n_out, n_in)
        _check(
            _required().subspace_rows_forward(
                x.data_ptr(),
                y.data_ptr(),
                *_sizes(y, n_out, n_in, transform, scale),
                *_pointers(values, bags.row_starts, bags.column),
                len(values),
                torch.get_num_threads(),
            )
        )
    return y


def backward(
    gy: Tensor,
    x: Tensor,
    scale: Tensor | None,
    values: Tensor,
    index: Tensor,
    needs: tuple[bool, bool, bool],
    shape: tuple[int, ...],
    transform: str,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(gx, gscale of one element, gvalues), float32, None where not needed."""
    n_out, n_in = _fans(shape)
    gy, x, values = gy.float().contiguous(), x.float().contiguous(), values.float().contiguous()
    gx = torch.empty_like(x) if needs[0] else None
    gscale = x.new_zeros(1) if needs[1] and scale is not None else None
    gvalues = torch.zeros_like(values) if needs[2] else None
    if gy.numel():
        bags = of_matrix(index, n_out, n_in)
        by_column = values.index_select(0, bags.by_column)
        _check(
            _required().subspace_rows_backward(
                gy.data_ptr(),
                x.data_ptr(),
                *_pointers(gx, gscale, gvalues),
                *_sizes(gy, n_out, n_in, transform, scale),
                *_pointers(by_column, bags.column_starts, bags.row_by_column, bags.by_column),
                len(values),
                torch.get_num_threads(),
            )
        )
    return gx, gscale, gvalues


def _sizes(
    y: Tensor, n_out: int, n_in: int, transform: str, scale: Tensor | None
) -> tuple[int, int, int, int, int, float]:
    return (
        y.numel() // n_out,
        y.shape[2] if y.ndim > 2 else 1,
        n_out,
        n_in,
        TRANSFORMS[transform],
        0.0 if scale is None else scale.item(),
    )


def _pointers(*tensors: Tensor | None) -> tuple[int | None, ...]:
    return tuple(None if t is None else t.data_ptr() for t in tensors)


def _required() -> ctypes.CDLL:
    found, why = _loaded()
    if found is None:
        raise RuntimeError(f"the native route needs the compiled kernels, got none: {why}")
    return found


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("the compiled kernels must have memory for their tiles, got none")
