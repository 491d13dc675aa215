"""Key: portable, named, counter-based; every number is specified down to its last bit."""

from __future__ import annotations

import json
import random
import time
from hashlib import blake2b

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import ndtri

from subspace import Key
from subspace._base.key import normal_quantile
from tests.support.strategies import seeds

MASK = 2**64 - 1


def philox(counter: int, key: tuple[int, int]) -> list[int]:
    """Philox4x64-10 in Python integers, from Salmon et al. 2011."""
    x, (k0, k1) = [counter, 0, 0, 0], key
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * x[0], 2**64)
        high1, low1 = divmod(0xCA5A826395121157 * x[2], 2**64)
        x = [high1 ^ x[1] ^ k0, low1, high0 ^ x[3] ^ k1, low0]
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
    return x


@given(seeds, st.lists(st.text(), max_size=3), st.integers(0, 2**40), st.integers(0, 20))
def test_the_stream_is_philox_under_the_hash_of_the_path(seed, path, start, n):
    digest = blake2b(json.dumps([seed, *path]).encode(), digest_size=16).digest()
    words = (int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little"))
    expected = [philox(1 + i // 4, words)[i % 4] for i in range(start, start + n)]
    assert Key(seed, tuple(path)).bits(n, start).tolist() == expected


def test_golden_values_never_change():
    key = Key(0).fold("layer1.weight")
    assert key.bits(2).tolist() == [9738917329942478324, 11001321152626982505]
    assert key.integers(6, 10).tolist() == [4, 5, 4, 2, 0, 0]
    assert key.distinct(25_000_000, 4).tolist() == [17478324, 1982505, 22800714, 15276372]
    assert key.distinct(6, 6).tolist() == [2, 3, 0, 4, 5, 1]
    assert key.permutation(6).tolist() == [2, 3, 0, 1, 4, 5]
    assert key.signs(8).tolist() == [1, 1, -1, 1, -1, -1, -1, -1]
    assert [x.hex() for x in key.uniform(2).tolist()] == ["0x1.0e4f2b6cd83bfp-1", "0x1.3159169a04a4fp-1"]
    assert [x.hex() for x in key.normal(2).tolist()] == ["0x1.1f2dd2fc163a3p-4", "0x1.f3b3de4388342p-3"]
    assert key.normal(200_000, dtype="float32").view("uint32").sum() == 425632537373703


@given(seeds, st.text(), st.text())
def test_names_make_different_streams(seed, a, b):
    assert (Key(seed).fold(a) == Key(seed).fold(b)) == (a == b)
    assert np.array_equal(Key(seed).fold(a).bits(4), Key(seed).fold(b).bits(4)) == (a == b)
    assert not np.array_equal(Key(seed).fold(a).fold(b).bits(4), Key(seed).fold(a + b).bits(4))
    assert Key.parse(str(Key(seed).fold(a))) == Key(seed).fold(a)


@given(seeds, st.integers(0, 300), st.integers(0, 300))
def test_a_stream_can_be_entered_anywhere(seed, start, n):
    key = Key(seed)
    for draw in (key.bits, key.uniform, key.normal, key.signs):
        assert np.array_equal(draw(n, start), draw(start + n)[start:])


@given(seeds, st.integers(1, 60), st.integers(0, 60))
def test_distinct_places_are_distinct_and_nested(seed, n, k):
    k = min(n, k)
    places = Key(seed).distinct(n, k)
    assert len(set(places.tolist())) == k
    assert set(places.tolist()) <= set(range(n))
    assert np.array_equal(places, Key(seed).distinct(n, n)[:k])


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_every_arrangement_is_equally_likely(k):
    drawn = [tuple(Key(seed).distinct(4, k).tolist()) for seed in range(6000)]
    _, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(counts) == [4, 12, 24, 24][k - 1]
    assert stats.chisquare(counts).pvalue > 1e-4


@given(seeds, st.integers(1, 200))
def test_permutations_permute(seed, n):
    assert np.array_equal(np.sort(Key(seed).permutation(n)), np.arange(n))


@given(seeds, st.sampled_from([1, 2, 3, 1000, 2**31 + 1, 2**53 + 1, 3 * 2**61 + 1, 2**63]))
def test_integers_are_the_fair_words_modulo_high(seed, high):
    words = [w for w in Key(seed).bits(400).tolist() if w < 2**64 // high * high]
    assert Key(seed).integers(50, high).tolist() == [w % high for w in words[:50]]


def test_choosing_few_of_many_places_costs_what_they_do():
    Key(1).distinct(25_000_000, 2_500)
    start = time.perf_counter()
    for seed in range(20):
        Key(seed).distinct(25_000_000, 2_500)
    assert (time.perf_counter() - start) / 20 < 0.02


def test_quantiles_agree_with_scipy():
    p = np.concatenate([Key(0).uniform(100_000), 2.0 ** -np.arange(2, 54), 1 - 2.0 ** -np.arange(2, 54)])
    np.testing.assert_allclose(normal_quantile(p), ndtri(p), rtol=1.2e-9, atol=1e-300)


@pytest.mark.parametrize("draw, law", [("normal", "norm"), ("uniform", "uniform")])
def test_numbers_have_their_distribution(draw, law):
    values = getattr(Key(3), draw)(200_000)
    assert stats.kstest(values, law).pvalue > 1e-4
    assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 0.01


def test_signs_are_fair_bits():
    signs = Key(5).signs(100_001)
    assert set(signs.tolist()) == {-1, 1}
    assert abs(int(signs.sum())) < 5 * 100_001**0.5
    assert signs[:64].tolist() == [1 - 2 * (int(Key(5).bits(1)[0]) >> i & 1) for i in range(64)]


def test_global_generators_are_untouched():
    before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
    key = Key(0)
    key.normal(10), key.distinct(10, 9), key.signs(3), key.permutation(3)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    assert before[2] == random.getstate()


@pytest.mark.parametrize(
    "bad, error",
    [
        (lambda: Key(1.5), "seed must be an integer, got 1.5"),
        (lambda: Key(0).fold(3), "name must be a string, got 3"),
        (lambda: Key(0).integers(3, 0), "high must be at least 1, got 0"),
        (lambda: Key(0).distinct(3, 4), r"k must be in \[0, 3\], got 4"),
    ],
)
def test_bad_input_is_refused(bad, error):
    with pytest.raises((TypeError, ValueError), match=error):
        bad()
