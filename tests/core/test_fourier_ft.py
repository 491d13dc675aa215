"""FourierFT: peft's formula, at frequencies whose cosines differ."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given

from subspace import Key
from subspace._base.layout import STANDARD
from subspace.embeddings import FourierFT
from subspace.embeddings.fourier_ft import frequency_count
from tests.support.cases import SHAPES
from tests.support.strategies import numbers, seeds, shapes

close = torch.testing.assert_close


def by_peft(U: FourierFT, theta: torch.Tensor, scaling: float) -> torch.Tensor:
    """The weight as peft states it: the real part of the dense spectrum's inverse 2-D transform, by numpy."""
    spectrum = np.zeros(STANDARD.fans(U.shape))
    spectrum[tuple(U.frequencies.T.numpy())] = theta.double().numpy()
    return torch.from_numpy(np.fft.ifft2(spectrum).real * scaling).reshape(U.shape)


@given(shape=shapes, seed=seeds)
def test_it_is_the_real_part_of_the_inverse_transform(shape, seed):
    most = frequency_count(*STANDARD.fans(torch.Size(shape)))
    for dim in {1, (most + 1) // 2, most}:
        U, theta = FourierFT(numbers(0, *shape), dim, key=Key(seed), scale=150.0), numbers(seed, dim)
        close(U(theta), by_peft(U, theta, 150.0))


@pytest.mark.parametrize("threads", [1, 2])
def test_large_transforms_are_right_whatever_the_threads(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        U, theta = FourierFT(torch.empty(2048, 2048), 1000, key=Key(0), scale=300.0), numbers(1, 1000).float()
        w, exact = U(theta), by_peft(U, theta, 300.0).float()
        close(w, exact, rtol=0, atol=1e-5 * float(exact.std()))
        x = numbers(2, 3, 2048).float()
        close(U.linear(theta, x), x @ exact.T, rtol=0, atol=1e-4 * float((x @ exact.T).std()))
        close(U.adjoint(exact), (300 / 2048**2) ** 2 * 2048**2 / 2 * theta, rtol=0, atol=1e-6)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [*SHAPES, (1, 2), (2, 2), (3, 1), (6, 2), (4, 1), (1, 6)])
def test_frequencies_are_all_that_differ_by_more_than_their_sign(shape):
    m, n = STANDARD.fans(torch.Size(shape))
    negatives = {(a, b): (-a % m, -b % n) for a in range(m) for b in range(n)}
    classes = {frozenset([one, other]) for one, other in negatives.items()}
    assert frequency_count(m, n) == len(classes)
    U = FourierFT(numbers(0, *shape), len(classes), key=Key(0))
    drawn = [tuple(frequency) for frequency in U.frequencies.tolist()]
    assert {frozenset([frequency, negatives[frequency]]) for frequency in drawn} == classes
    for dim in range(1, len(classes)):
        assert FourierFT(numbers(0, *shape), dim, key=Key(0)).frequencies.tolist() == U.frequencies[:dim].tolist()


def test_lengths_of_the_columns_by_scale():
    for scale, length in [(None, 1.0), (150.0, 150 / (2 * 9 * 11) ** 0.5)]:
        U = FourierFT(numbers(0, 9, 11), 50, key=Key(0), scale=scale)  # of odd sides: only (0, 0) is its own negative
        own = (U.frequencies == 0).all(1)
        assert own.sum() == 1
        lengths = torch.stack([U(theta).norm() for theta in torch.eye(50, dtype=torch.float64)])
        factor = 1 if scale is None else 2**0.5
        close(lengths, torch.where(own, factor * length, length).double())


def test_the_product_never_holds_the_weight():
    kept = []

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept.append(x.numel())
        return x

    U, x = FourierFT(numbers(0, 60, 80), 20, key=Key(0)), numbers(1, 3, 80).requires_grad_()
    theta = numbers(2, 20).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        U.linear(theta, x)
    assert max(kept) <= 3 * 2 * 20


@pytest.mark.parametrize(
    "bad, error",
    [
        (lambda w: FourierFT(w, 8, key=Key(0)), r"dim must be in \[1, 7\], got 8"),
        (lambda w: FourierFT(w, 0, key=Key(0)), r"dim must be in \[1, \d+\], got 0"),
        (lambda w: FourierFT(w, 2), "FourierFT needs a key=, got None"),
        (lambda w: FourierFT(w, 2, key=Key(0), scale=0.0), "scale must be positive and finite, got 0.0"),
        (lambda w: FourierFT(w, 2, key=Key(0), scale=float("inf")), "scale must be positive and finite, got inf"),
    ],
)
def test_bad_input_is_refused(bad, error):
    with pytest.raises((TypeError, ValueError), match=error):
        bad(torch.empty(3, 4))
