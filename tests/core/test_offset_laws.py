"""What every offset promises, and each one's own definition against an independent reference."""

from __future__ import annotations

import copy
import itertools
import math
import random

import numpy as np
import pytest
import scipy.fft
import scipy.linalg
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from subspace import Key
from subspace.offsets import (
    DCT,
    BlockDCT,
    BlockHadamard,
    Gaussian,
    Haar,
    Hadamard,
    Offset,
    Pretrained,
    RankOne,
    SignedDCT,
    SignedHadamard,
    SignedPermutation,
)
from tests.support.cases import OFFSETS
from tests.support.memory import peak_bytes
from tests.support.strategies import each_offset, numbers, offset, seeds, shapes


@each_offset
@given(shape=shapes, seed=seeds)
def test_is_fixed_and_has_the_shape_and_no_gradient(case, shape, seed):
    d = offset(case, shape, seed)
    value = d()
    assert value.shape == d.shape
    assert value.dtype == torch.float64
    assert not value.requires_grad
    assert not list(d.parameters())
    assert torch.equal(value, d())
    assert torch.equal(value, copy.deepcopy(d)())
    assert torch.equal(value, offset(case, shape, seed)())


@each_offset
@given(shape=shapes)
def test_stores_nothing_that_can_be_rebuilt(case, shape):
    d = offset(case, shape)
    assert not d.state_dict()
    assert not list(d.buffers())
    held = [t for t in vars(d).values() if isinstance(t, torch.Tensor) and t.numel()]
    assert len(held) == case.orders + (case.held or getattr(d, "keep", False))
    if case.orders:
        channels = d.shape[1:2].numel()
        lengths = {channels} if case.orders == 1 else {d.fans[0], max(d.fans)}
        assert all(t.ndim == 1 and len(t) in lengths for t in held)


@each_offset
@given(n=st.sampled_from([(5, 8), (8, 5), (7, 7), (1, 6), (9, 1)]), batch=st.sampled_from([(), (3,), (2, 0), (2, 3)]))
def test_linear_equals_its_reference(case, n, batch):
    d = offset(case, n)
    x = numbers(1, *batch, n[1])
    torch.testing.assert_close(d.linear(x), Offset.linear(d, x))


@each_offset
@given(shape=shapes)
def test_follows_dtype(case, shape):
    d = offset(case, shape)
    exact = d().clone()
    for dtype in (torch.float32, torch.bfloat16):
        d.to(dtype)
        computed = dtype if case.held else torch.float32  # in bfloat16 it is w that is rounded, and once
        assert d().dtype == computed
        eps = torch.finfo(computed).eps
        torch.testing.assert_close(d().double(), exact, rtol=2 * eps, atol=eps)
    if not case.held:
        assert torch.equal(d.double()(), exact)  # drawn or computed again, not widened


@each_offset
def test_is_rebuilt_when_it_leaves_the_meta_device(case):
    if not case.held:
        meta = case.make(torch.empty(6, 4, device="meta", dtype=torch.float64), Key(0))
        assert meta().is_meta
        assert torch.equal(meta.to_empty(device="cpu")(), offset(case, (6, 4))())


@each_offset
def test_global_generators_are_untouched(case):
    before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
    offset(case, (6, 4))()
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    assert before[2] == random.getstate()


@each_offset
@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_a_weight_that_is_not_real_is_refused(case, dtype):
    with pytest.raises(TypeError, match=f"like must be a real floating-point tensor, got {dtype}"):
        case.make(torch.zeros(2, 3, dtype=dtype), Key(0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@each_offset
def test_cuda_equals_cpu(case):
    d = offset(case, (6, 4, 3, 3))
    on_cpu = d().clone()
    torch.testing.assert_close(d.cuda()().cpu(), on_cpu)


def truncated_dct(n_out: int, n_in: int) -> np.ndarray:
    q = max(n_out, n_in)
    return scipy.fft.dct(np.eye(q), axis=0, norm="ortho")[:n_out, :n_in]


@given(n_out=st.integers(1, 40), n_in=st.integers(1, 40))
def test_dct_is_the_truncated_orthonormal_dct(n_out, n_in):
    D = DCT(torch.empty(n_out, n_in, dtype=torch.float64))()
    np.testing.assert_allclose(D, truncated_dct(n_out, n_in), atol=1e-14)
    np.testing.assert_allclose(np.linalg.svd(D, compute_uv=False), 1, rtol=1e-12)


GEOMETRY = list(itertools.product([(1, 1), (3, 2)], [1, 2], [0, 1], [1, 2], [1, 2, 4]))


@pytest.mark.parametrize("kernel, stride, padding, dilation, groups", GEOMETRY)
@pytest.mark.parametrize("channels", [(4, 8), (8, 4), (4, 4)])
def test_dct_conv_transforms_each_patch_channel_fastest(kernel, stride, padding, dilation, groups, channels):
    inputs, outputs = channels
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False, dtype=torch.float64)
    x = numbers(0, 1, inputs, 7, 8)
    y = F.conv2d(x, DCT(conv.weight)(), None, stride, padding, dilation, groups)[0]
    padded = F.pad(x, [padding] * 4)[0]
    share_in, share_out = inputs // groups, outputs // groups
    full = truncated_dct(outputs, share_in * math.prod(kernel))
    for group, row, column in itertools.product(range(groups), *map(range, y.shape[1:])):
        patch = [
            padded[group * share_in + channel, row * stride + r * dilation, column * stride + c * dilation].item()
            for r, c, channel in itertools.product(range(kernel[0]), range(kernel[1]), range(share_in))
        ]
        rows = slice(group * share_out, (group + 1) * share_out)
        np.testing.assert_allclose(y[rows, row, column], full[rows] @ patch, atol=1e-12)


def test_dct_is_exact_to_half_a_unit_in_the_last_place():
    like = torch.empty(700, 900)
    np.testing.assert_allclose(DCT(like)(), truncated_dct(700, 900), rtol=6e-8, atol=1e-9)


@given(n_out=st.integers(1, 40), n_in=st.integers(1, 40), gain=st.floats(0.1, 3), seed=seeds)
def test_the_signed_dct_is_the_dct_of_inputs_with_signs(n_out, n_in, gain, seed):
    d = SignedDCT(torch.empty(n_out, n_in, dtype=torch.float64), key=Key(seed), gain=gain)()
    signs = Key(seed).fold("signs").signs(n_in)
    np.testing.assert_allclose(d, gain * truncated_dct(n_out, n_in) * signs, rtol=1e-12, atol=1e-12)


def test_the_signed_dct_of_a_convolution_has_one_sign_a_channel():
    like = torch.empty(5, 40, 3, 2, dtype=torch.float64)
    ratio = SignedDCT(like, key=Key(0))() / DCT(like)()
    signs = torch.from_numpy(Key(0).fold("signs").signs(40)).double()
    torch.testing.assert_close(ratio, signs.reshape(1, 40, 1, 1).expand_as(ratio))
    assert 0 < int((signs == 1).sum()) < 40


@given(n_out=st.integers(1, 40), n_in=st.integers(1, 40), gain=st.floats(0.1, 3))
def test_hadamard_is_the_truncated_walsh_hadamard_matrix(n_out, n_in, gain):
    q = 1 << (max(n_out, n_in) - 1).bit_length()
    H = Hadamard(torch.empty(n_out, n_in, dtype=torch.float64), gain=gain)()
    expected = gain * scipy.linalg.hadamard(q)[:n_out, :n_in] / max(n_out, n_in) ** 0.5
    np.testing.assert_allclose(H, expected)
    np.testing.assert_allclose(H.norm() ** 2, gain**2 * min(n_out, n_in))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cls", [DCT, Hadamard])
@pytest.mark.parametrize("shape", [(13, 9), (9, 13), (6, 4, 3, 3)])
def test_the_blocks_it_is_built_in_change_no_bit(cls, shape, dtype, monkeypatch):
    d = cls(torch.empty(shape, dtype=dtype), gain=1.5)
    whole = d()
    for block in (1, 30):
        monkeypatch.setattr("subspace._base.matrices.BLOCK", block)
        assert torch.equal(d(), whole)


@pytest.mark.parametrize("cls", [DCT, Hadamard])
def test_building_it_takes_little_more_memory_than_it_has(cls):
    d = cls(torch.empty(3000, 2000))
    assert peak_bytes(d) < 1.6 * 3000 * 2000 * 4


@pytest.mark.parametrize("cls", [DCT, Hadamard, SignedHadamard, Haar, BlockHadamard, BlockDCT, SignedPermutation])
def test_gain_scales(cls):
    like = numbers(0, 6, 4, 3)
    torch.testing.assert_close(cls(like, gain=2.5, key=Key(0))(), 2.5 * cls(like, key=Key(0))())


@given(n_out=st.integers(1, 40), n_in=st.integers(1, 40), gain=st.floats(0.1, 3), seed=seeds)
def test_the_signed_hadamard_is_the_hadamard_of_inputs_with_signs(n_out, n_in, gain, seed):
    like = torch.empty(n_out, n_in, dtype=torch.float64)
    signs = Key(seed).fold("signs").signs(n_in)
    np.testing.assert_allclose(
        SignedHadamard(like, key=Key(seed), gain=gain)(), Hadamard(like, gain=gain)() * torch.from_numpy(signs)
    )


def haar_matrix(n: int) -> np.ndarray:
    """The orthonormal Haar matrix, by its definition: averages of the pairs first, then their differences."""
    if n == 1:
        return np.eye(1)
    pairs, step = n // 2, np.zeros((n, n))
    for i in range(pairs):
        step[i, 2 * i : 2 * i + 2] = 0.5**0.5
        step[(n + 1) // 2 + i, 2 * i : 2 * i + 2] = 0.5**0.5, -(0.5**0.5)
    if n % 2:
        step[pairs, n - 1] = 1
    coarser = (n + 1) // 2
    return scipy.linalg.block_diag(haar_matrix(coarser), np.eye(n - coarser)) @ step


@given(n_out=st.integers(1, 40), n_in=st.integers(1, 40), gain=st.floats(0.1, 3))
def test_haar_is_the_cut_haar_matrix(n_out, n_in, gain):
    expected = gain * haar_matrix(max(n_out, n_in))[:n_out, :n_in]
    np.testing.assert_allclose(Haar(torch.empty(n_out, n_in, dtype=torch.float64), gain=gain)(), expected, atol=1e-14)


def pieces(n: int, block: int, cls: type) -> list[int]:
    """The blocks' lengths: as many of `block` as fit, then the rest, for a Hadamard matrix by its binary digits."""
    lengths = []
    while n:
        largest = n if cls is BlockDCT else 2 ** int(math.log2(n))
        lengths.append(min(block, largest))
        n -= lengths[-1]
    return lengths


@pytest.mark.parametrize("cls", [BlockHadamard, BlockDCT])
@given(n_out=st.integers(1, 40), n_in=st.integers(1, 40), block=st.sampled_from([1, 2, 4, 16, 64]), seed=seeds)
def test_a_block_transform_is_one_of_shuffled_inputs_with_signs(cls, n_out, n_in, block, seed):
    q, key = max(n_out, n_in), Key(seed)
    lengths = pieces(q, block, cls)
    small = [truncated_dct(n, n) if cls is BlockDCT else scipy.linalg.hadamard(n) / n**0.5 for n in lengths]
    blocks = scipy.linalg.block_diag(*small)
    shuffled = np.eye(q)[key.fold("order").permutation(q)] * key.fold("signs").signs(q)[:, None]
    kept = sorted(range(q), key=[i for n in lengths for i in range(n)].__getitem__)[:n_out]
    d = cls(torch.empty(n_out, n_in, dtype=torch.float64), key=key, block=block, gain=1.5)()
    np.testing.assert_allclose(d, 1.5 * (blocks @ shuffled)[kept, :n_in], atol=1e-14)


@given(n_out=st.integers(1, 40), n_in=st.integers(1, 40), gain=st.floats(0.1, 3), seed=seeds)
def test_a_signed_permutation_has_one_entry_for_each_of_the_more_numerous(n_out, n_in, gain, seed):
    d = SignedPermutation(torch.empty(n_out, n_in, dtype=torch.float64), key=Key(seed), gain=gain)().numpy()
    d = d if n_out >= n_in else d.T
    more, fewer = d.shape
    assert ((d != 0).sum(1) == 1).all()
    counts = (d != 0).sum(0)
    assert set(counts.tolist()) <= {more // fewer, -(-more // fewer)}
    np.testing.assert_allclose(np.abs(d[d != 0]), (gain / counts**0.5)[np.nonzero(d)[1]])


@pytest.mark.parametrize("cls", [DCT, SignedDCT, Haar, BlockHadamard, BlockDCT, SignedPermutation])
@given(n_out=st.integers(1, 40), n_in=st.integers(1, 40), seed=seeds)
def test_is_semi_orthogonal(cls, n_out, n_in, seed):
    d = cls(torch.empty(n_out, n_in, dtype=torch.float64), key=Key(seed), gain=0.7)()
    np.testing.assert_allclose(np.linalg.svd(d, compute_uv=False), 0.7, rtol=1e-12)


@given(n_out=st.integers(1, 40), n_in=st.integers(1, 40), gain=st.floats(0.1, 3), seed=seeds)
def test_rank_one_is_of_rank_one_and_as_large_as_the_dct(n_out, n_in, gain, seed):
    d = RankOne(torch.empty(n_out, n_in, dtype=torch.float64), key=Key(seed), gain=gain)()
    singular = np.linalg.svd(d, compute_uv=False)
    np.testing.assert_allclose(singular[0], gain * min(n_out, n_in) ** 0.5)
    assert (singular[1:] < 1e-13).all()


def test_rank_one_has_gaussian_factors_that_are_the_keys_streams():
    u, v = Key(7).fold("u").normal(300), Key(7).fold("v").normal(200)
    d = RankOne(torch.empty(300, 200, dtype=torch.float64), key=Key(7))()
    np.testing.assert_allclose(d, np.outer(u / np.linalg.norm(u), v / np.linalg.norm(v)) * 200**0.5)


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
@pytest.mark.parametrize("fan", ["in", "out", "average"])
@pytest.mark.parametrize("shape", [(64, 300), (32, 16, 5, 5), (96, 1, 3, 3)])
def test_gaussian_is_torchs_initialisation_in_distribution(distribution, fan, shape):
    like = torch.empty(shape, dtype=torch.float64)
    values = Gaussian(like, key=Key(0), distribution=distribution, fan=fan)().flatten()
    fans = dict(zip(("in", "out"), nn.init._calculate_fan_in_and_fan_out(like), strict=True))
    std = (2 / sum(fans.values())) ** 0.5 if fan == "average" else (2 / fans[fan]) ** 0.5
    law = stats.norm(0, std) if distribution == "normal" else stats.uniform(-(3**0.5) * std, 2 * 3**0.5 * std)
    assert stats.kstest(values, law.cdf).pvalue > 1e-3


def test_gaussian_is_the_keys_stream():
    d = Gaussian(torch.empty(3, 4, dtype=torch.float64), key=Key(7), gain=1.0)()
    np.testing.assert_array_equal(d.flatten(), Key(7).normal(12) * 0.5)


def test_gaussian_depends_on_the_key_and_nothing_else():
    like = torch.empty(3, 4)
    assert not torch.equal(Gaussian(like, key=Key(1))(), Gaussian(like, key=Key(2))())
    assert torch.equal(Gaussian(like + 1, key=Key(1))(), Gaussian(like, key=Key(1))())


@pytest.mark.parametrize(
    "bad, error",
    [
        (lambda: Pretrained(torch.tensor([1.0, math.nan, math.inf])), "weights must be finite, got 2 that are not"),
        (lambda: RankOne(torch.empty(3, 3)), "RankOne needs a key=, got None"),
        (lambda: SignedPermutation(torch.empty(3, 3)), "SignedPermutation needs a key=, got None"),
        (lambda: SignedHadamard(torch.empty(3, 3)), "SignedHadamard needs a key=, got None"),
        (lambda: BlockHadamard(torch.empty(3, 3), key=Key(0), block=3), "block must be a power of two, got 3"),
        (lambda: BlockHadamard(torch.empty(3, 3), key=Key(0), block=0), "block must be a power of two, got 0"),
        (lambda: BlockDCT(torch.empty(3, 3), key=Key(0), block=0), "block must be at least 1, got 0"),
        (lambda: Gaussian(torch.empty(3, 3)), "Gaussian needs a key=, got None"),
        (lambda: Gaussian(torch.empty(3, 3), key=3), "key must be a subspace.Key, got 3"),
        (lambda: Gaussian(torch.empty(3), key=Key(0)), r"at least 2 axes to have a fan, got shape \(3,\)"),
        (lambda: Gaussian(torch.empty(3, 3), key=Key(0), fan="on"), "fan must be 'in', 'out' or 'average', got 'on'"),
        (
            lambda: Gaussian(torch.empty(3, 3), key=Key(0), distribution="cauchy"),
            "distribution must be 'normal' or 'uniform', got 'cauchy'",
        ),
    ],
)
def test_bad_input_is_refused(bad, error):
    with pytest.raises((TypeError, ValueError), match=error):
        bad()


def test_the_list_is_complete():
    from subspace import offsets

    made = {type(offset(case, (4, 4))).__name__ for case in OFFSETS}
    assert made == set(offsets.__all__) - {"Offset"}
