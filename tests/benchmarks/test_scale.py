"""What processes send in a step is what the formula says, and no more than theta where w is d + U theta."""

from __future__ import annotations

import doctest

import pytest

from benchmarks import scale
from tests.support.processes import processes

pytestmark = pytest.mark.torchrun
WIDTH, DEPTH, BATCH, DENSITY = 24, 3, 4, 0.05


@pytest.fixture(scope="module", params=[2, 3])
def run(request):
    with processes(request.param) as run:
        yield run


def step(run, name: str, how: str) -> dict:
    rows = run(scale.measure, name, how, WIDTH, DEPTH, BATCH, DENSITY)
    assert all(row == rows[0] for row in rows)
    return rows[0]


def padded(numbers: int, processes: int) -> int:
    return -(-numbers // processes) * processes


@pytest.mark.parametrize("name", ["dense", "DCT + S", "DCT + S, w built"])
def test_sharded_parameters_are_gathered_twice_and_reduced_once(run, name):
    row = step(run, name, "fully_shard")
    n, layers = row["processes"], [p.numel() for p in scale.MODELS[name](scale.mlp(WIDTH, DEPTH), DENSITY).parameters()]
    numbers = sum(padded(layer, n) for layer in layers)
    assert row["sent MB"] == pytest.approx(scale.on_paper(numbers, processes=n) / 1e6)
    assert row["gathered MB"] == pytest.approx(2 * row["reduced MB"])
    assert row["largest tensor"] == max(padded(layer, n) for layer in layers)
    if name != "dense":
        assert row["trained"] == sum(layers) < 0.06 * row["weights"]
        assert row["largest tensor"] < 0.1 * WIDTH**2  # which no layer's w is


def test_a_dense_d_in_parts_is_gathered_and_has_no_gradient(run):
    row = step(run, "pretrained + S", "fully_shard")
    n = row["processes"]
    passes = 2 * DEPTH - 1  # the first layer's input needs no gradient
    d = 4 * passes * WIDTH**2 * (n - 1) / n / 1e6
    thetas = [p.numel() for p in scale.MODELS["pretrained + S"](scale.mlp(WIDTH, DEPTH), DENSITY).parameters()]
    theta = scale.on_paper(sum(padded(each, n) for each in thetas), processes=n) / 1e6
    assert row["sent MB"] == pytest.approx(d + theta)


@pytest.mark.parametrize("name", scale.MODELS)
def test_replicas_send_the_gradients_of_what_trains(run, name):
    row = step(run, name, "DDP")
    n = row["processes"]
    assert row["all-reduced MB"] == pytest.approx(2 * (n - 1) / n * 4 * row["trained"] / 1e6, abs=1e-6)
    assert row["broadcast MB"] <= DEPTH * 4 * 32 / 1e6  # the signs of (d, U)


def test_the_formula_of_the_page():
    assert doctest.testmod(scale).failed == 0
