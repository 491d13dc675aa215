"""FourierFT: peft's formula, at frequencies whose cosines differ."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import nn

from subspace import Key, Layout, load, register, save, subspaces
from subspace._base.layout import STANDARD
from subspace.embeddings import FourierFT
from subspace.embeddings.fourier_ft import frequency_count, frequency_places
from subspace.offsets import Pretrained
from tests.support.cases import SHAPES
from tests.support.strategies import numbers, seeds, shapes

close = torch.testing.assert_close


def by_peft(U: FourierFT, theta: torch.Tensor, scaling: float) -> torch.Tensor:
    """The weight as peft states it: the real part of the dense spectrum's inverse 2-D transform, by numpy."""
    spectrum = np.zeros(STANDARD.fans(U.shape))
    spectrum[tuple(U.frequencies.T.numpy())] = theta.double().numpy()
    return STANDARD.from_matrix(torch.from_numpy(np.fft.ifft2(spectrum).real * scaling), U.shape)


@given(shape=shapes, seed=seeds)
def test_it_is_the_real_part_of_the_inverse_transform(shape, seed):
    most = frequency_count(*STANDARD.fans(torch.Size(shape)))
    for dim in {1, (most + 1) // 2, most}:
        U, theta = FourierFT(numbers(0, *shape), dim, key=Key(seed), scale=150.0), numbers(seed, dim)
        close(U(theta), by_peft(U, theta, 150.0))


LAYOUTS = {
    "experts": ((3, 5, 4), Layout.parse("batch out in")),
    "experts from the right": ((3, 4, 6), Layout.parse("batch in out")),
    "inputs first": ((4, 7), Layout.parse("in out")),
    "fused": ((12, 5), Layout(blocks=3)),
    "transposed convolution": ((3, 4, 2, 2), Layout.parse("in out tap tap")),
}


@pytest.mark.parametrize("case", LAYOUTS)
@pytest.mark.parametrize("scale", [None, 150.0])
def test_each_matrix_of_a_tensor_has_waves_of_its_own(case, scale):
    shape, layout = LAYOUTS[case]
    n_out, n_in = layout.fans(torch.Size(shape))
    of_one = frequency_count(n_out, n_in)
    most = of_one * layout.matrices(torch.Size(shape))
    for dim in (1, most // 2, most):
        U = FourierFT(numbers(0, *shape), dim, key=Key(0), scale=scale, layout=layout)
        theta, matrices = numbers(1, dim), layout.to_matrix(U(numbers(1, dim))).reshape(-1, n_out, n_in)
        places = torch.from_numpy(Key(0).distinct(most, dim))
        for number, matrix in enumerate(matrices):
            mine = places // of_one == number
            if not mine.any():
                assert not matrix.any()
                continue
            one = FourierFT(numbers(0, n_out, n_in), index=places[mine] % of_one, scale=scale)
            close(matrix, one(theta[mine]))
        if len(shape) == 2 and layout.inputs == (1,):
            x = numbers(2, 3, shape[1])
            close(U.linear(theta, x), x @ U(theta).T)
            thetas = numbers(3, 3, dim)
            close(U.linear_each(thetas, x), torch.stack([x[i] @ U(thetas[i]).T for i in range(3)]))
        close(U.coordinates(U(theta)), theta)


@pytest.mark.parametrize("shape", [(5, 8), (8, 5), (1, 1), (1, 6), (6, 1), (2, 2), (9, 7)])
def test_frequencies_have_the_numbers_that_they_are_drawn_by(shape):
    n_out, n_in = shape
    a, b = (grid.flatten() for grid in torch.meshgrid(torch.arange(n_out), torch.arange(n_in), indexing="ij"))
    places = frequency_places(a, b, n_out, n_in)
    assert torch.equal(places, frequency_places(-a % n_out, -b % n_in, n_out, n_in))
    every = torch.arange(frequency_count(n_out, n_in))
    assert torch.equal(places.unique(), every)
    U = FourierFT(numbers(0, *shape), index=every)
    assert torch.equal(frequency_places(*U.frequencies.T, n_out, n_in), every)


def test_an_index_is_kept_in_files_and_where_the_model_goes(tmp_path):
    layer = nn.Linear(8, 6)
    U = FourierFT(layer.weight, index=torch.tensor([7, 2, 20]), scale=3.0)
    register(layer, "weight", Pretrained(layer.weight), U, torch.ones(3))
    expected = layer.weight.detach().clone()
    save(layer, tmp_path / "file")
    torch.manual_seed(0)
    for other in (load(copy_of(layer), tmp_path / "file"), layer.double().float()):
        ((_, space),) = subspaces(other)
        assert space.embedding.index.tolist() == [7, 2, 20]
        close(other.weight, expected)


def copy_of(layer: nn.Linear) -> nn.Linear:
    other = nn.Linear(8, 6)
    other.weight.data.copy_(next(subspaces(layer))[1].offset())
    other.bias.data.copy_(layer.bias)
    return other


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
        (lambda w: FourierFT(w), "exactly one of dim and index must be given, got dim=None and index=None"),
        (lambda w: FourierFT(w, index=torch.tensor([7])), r"index must be 1-d int64, distinct and in \[0, 7\), got 7"),
        (lambda w: FourierFT(w, index=torch.tensor([1, 1])), "index must be 1-d int64, .* got 1 repeated"),
        (lambda w: FourierFT(w, 2), "FourierFT needs a key=, got None"),
        (lambda w: FourierFT(w, 2, key=Key(0), scale=0.0), "scale must be positive and finite, got 0.0"),
        (lambda w: FourierFT(w, 2, key=Key(0), scale=float("inf")), "scale must be positive and finite, got inf"),
    ],
)
def test_bad_input_is_refused(bad, error):
    with pytest.raises((TypeError, ValueError), match=error):
        bad(torch.empty(3, 4))
