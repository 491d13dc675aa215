"""The compiled kernels: every instruction set against dense float64, the source under sanitizers, and their absence."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.fft
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

from subspace.products.geometry import LINEAR
from subspace.products.native import load, rows
from subspace.products.problem import Problem
from subspace.products.routes.native import Native
from subspace.products.weight import Needs, Weight

ROOT = Path(__file__).parent
BUILT = [name for name in ("baseline", "avx2", "avx512") if load._load(name)[0] is not None]
CAPABLE = load.SETS.get(torch.backends.cpu.get_cpu_capability(), ("baseline",))
needs_kernels = pytest.mark.skipif(not load.is_available(), reason=load.status())


def transform_matrix(transform: str, n_out: int, n_in: int) -> np.ndarray:
    q = max(n_out, n_in)
    if transform == "zero":
        return np.zeros((n_out, n_in))
    if transform == "dct":
        return scipy.fft.dct(np.eye(q), norm="ortho", axis=0)[:n_out, :n_in]
    return scipy.linalg.hadamard(1 << (q - 1).bit_length())[:n_out, :n_in] / math.sqrt(q)


@needs_kernels
@pytest.mark.parametrize("name", [name for name in BUILT if name in CAPABLE])
@given(
    st.sampled_from([1, 2, 3, 8, 13, 31, 40, 64, 75, 121, 250, 256]),
    st.sampled_from([1, 2, 5, 7, 16, 28, 62, 64, 93, 243, 512]),
    st.sampled_from(["zero", "dct", "hadamard"]),
    st.integers(0, 70),
    st.sampled_from([1, 4, 9, 49]),
    st.sampled_from([0.0, 0.05, 0.5]),
    st.integers(0, 2**32),
)
def test_every_instruction_set_is_the_dense_product(  # noqa: PLR0913
    name, n_out, n_in, transform, batch, pixels, density, seed
):
    g = np.random.default_rng(seed)
    T = transform_matrix(transform, n_out, n_in)
    k = round(density * T.size)
    index, values, scale = np.sort(g.permutation(T.size)[:k]), g.standard_normal(k), g.standard_normal(1)
    w = scale * T
    w.flat[index] += values
    shape = (batch, n_in, pixels) if pixels > 1 else (batch, n_in)
    x = g.standard_normal(shape)
    gy = g.standard_normal((batch, n_out, *shape[2:]))
    tensors = [torch.from_numpy(np.asarray(a)).float() for a in (gy, x, scale, values)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "_loaded", lambda: load._load(name))
        problem = Problem((n_out, n_in), k, transform, (batch, n_in), torch.float32, "cpu")
        if not Native().supports(problem):
            assert transform == "dct"
            assert any(max(n_out, n_in) % p == 0 for p in (37, 41, 43, 47, 53))
            return
        scale = None if transform == "zero" else tensors[2]
        weight = Weight(scale, tensors[3], torch.from_numpy(index), (n_out, n_in), transform)
        y = rows.forward(tensors[1], weight, LINEAR)
        gx, gscale, gvalues = rows.backward(tensors[0], tensors[1], weight, LINEAR, Needs(True, True, True))
    axes = "bo,bi->oi" if pixels == 1 else "bop,bip->oi"
    gw = np.einsum(axes, gy, x)
    tolerance = 1e-5 * (1 + math.sqrt(x.size))
    np.testing.assert_allclose(y, np.einsum("oi,bi...->bo...", w, x), atol=tolerance)
    np.testing.assert_allclose(gx, np.einsum("oi,bo...->bi...", w, gy), atol=tolerance)
    np.testing.assert_allclose(gvalues, gw.flat[index], atol=tolerance)
    assert gscale is None if transform == "zero" else abs(float(gscale) - (gw * T).sum()) < tolerance


@needs_kernels
def test_a_float32_product_is_no_less_accurate_than_the_dense_one():
    for n in (256, 1000, 4096):
        x = torch.randn(64, n)
        T = torch.from_numpy(transform_matrix("dct", n, n))
        w = Weight(torch.ones(1), torch.empty(0), torch.empty(0, dtype=torch.int64), (n, n), "dct")
        exact = x.double() @ T.T
        error = (rows.forward(x, w, LINEAR) - exact).norm()
        assert error <= (x @ T.float().T - exact).norm()


@needs_kernels
def test_sums_do_not_depend_on_which_thread_is_first():
    x, gy, values = torch.randn(200, 64), torch.randn(200, 48), torch.randn(30)
    index = torch.arange(30) * 100
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        what = gy, x, Weight(torch.ones(1), values, index, (48, 64), "dct"), LINEAR, Needs(True, True, True)
        first = rows.backward(*what)
        for _ in range(20):
            assert all(map(torch.equal, rows.backward(*what), first))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.compile
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_the_source_is_clean_under_sanitizers(tmp_path):
    flags = "-std=c++17 -O1 -fsanitize=address,undefined -fno-sanitize-recover=all -Wall -Wextra -Wno-psabi"
    wide = ["-march=x86-64-v3"] if "avx2" in CAPABLE else []
    subprocess.run(
        ["g++", *flags.split(), *wide, ROOT / "native_rows_driver.cpp", "-o", tmp_path / "driver"], check=True
    )
    done = subprocess.run([tmp_path / "driver"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_without_the_kernels_everything_works_and_says_so():
    code = """
import torch
from subspace import recipes, structured, summary
net = structured(recipes.dctps(torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 10)), density=0.1))
net(torch.randn(3, 64)).sum().backward()
print(summary(net))
structured(net, "native")
try:
    net(torch.randn(3, 64))
except ValueError as error:
    print(error)
"""
    environment = {**os.environ, "SUBSPACE_NATIVE": "0"}
    text = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
    assert "structured: 2 of 2; compiled kernels: switched off by SUBSPACE_NATIVE=0" in text
    assert "route must be one of auto, dense, remat, fft, got 'native'" in text


def test_an_unknown_set_is_named():
    assert load._load("sse9") == (None, "not built for sse9: no C++ compiler when this package was installed")


def test_this_test_environment_has_the_kernels_where_it_has_a_compiler():
    assert load.is_available() or shutil.which("g++") is None, load.status()
