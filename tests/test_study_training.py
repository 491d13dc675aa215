"""Laws of one run: pure, portable, fair, and loud when it diverges."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from subspace import Key
from subspace.study import data, models
from subspace.study.config import Run, Training
from subspace.study.loop import batches
from subspace.study.train import accuracy, train

SHORT = Training(epochs=2, batch=50)


@pytest.fixture(autouse=True)
def few_digits(monkeypatch):
    """120 bright squares, dark squares and stripes, in place of the digits: a tenth of a second an epoch."""
    noise = torch.from_numpy(Key(0).integers(160 * 784, 100)).reshape(160, 1, 28, 28) / 100
    labels = torch.arange(160) % 3
    noise[labels == 0, :, 8:20, 8:20] += 2
    noise[labels == 1, :, 8:20, 8:20] -= 2
    noise[labels == 2, :, ::4] += 2
    few = data.Data(noise[:120], labels[:120], noise[120:], labels[120:])
    monkeypatch.setattr(data, "mnist5k", lambda: few)


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def figures(run):
    return {name: value for name, value in train(run).items() if name != "seconds"}


@pytest.mark.parametrize(
    "name",
    ["ordinary", "random_pruning_epl", "dctps", "freezenet", "random_subspace", "snip", "grasp", "set", "dctps_rigl"],
)
def test_the_same_configuration_gives_the_same_bits(name, one_thread):
    density = None if name == "ordinary" else 0.0005 if name == "random_subspace" else 0.02
    run = Run(name, density, 0, training=Training(epochs=1, batch=10))  # twelve steps: movers move once
    once = figures(run)
    assert once == figures(run)
    assert once["train_loss"] != figures(replace(run, seed=1))["train_loss"]


def test_no_global_generator_is_moved():
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    train(Run("dctps", 0.01, 0, training=SHORT))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()
    assert random.getstate() == python_state


def test_no_global_generator_is_read():
    run = Run("freezenet", 0.01, 0, training=SHORT)
    before = figures(run)
    torch.rand(3), np.random.rand(3), random.random()
    assert figures(run)["train_loss"] == pytest.approx(before["train_loss"], rel=1e-5)


def test_the_curves_have_one_point_per_epoch_and_training_learns():
    reported = []
    metrics = train(Run("ordinary", None, 0, training=Training(epochs=3, batch=30)), reported.append)
    assert reported == [1, 2, 3]
    assert len(metrics["train_loss"]) == len(metrics["test_accuracy"]) == 3
    assert metrics["train_loss"][-1] < metrics["train_loss"][0]
    assert metrics["test_accuracy"][-1] > 0.9
    assert metrics["seconds"] > 0


def test_a_diverging_run_stops_with_one_sentence():
    with pytest.raises(FloatingPointError, match=r"the loss must be finite, got (nan|inf) in epoch 1"):
        train(Run("ordinary", None, 0, training=Training(2, 20, learning_rate=1e30)))


def test_sizes_are_those_of_the_model_and_the_learning_rate_follows_the_density():
    dense = train(Run("ordinary", None, 0, training=Training(1, 120, 0.004)))
    sparse = train(Run("dctps", 0.01, 0, training=Training(1, 120, 0.004)))
    assert (dense["weights"], dense["dim"], dense["alpha"], dense["learning_rate"]) == (61_210, 61_210, 0, 0.004)
    assert (sparse["weights"], sparse["dim"] - sparse["alpha"], sparse["alpha"]) == (61_210, 612, 5)
    assert sparse["learning_rate"] == pytest.approx(0.04)
    assert dense["trained_bytes"] == 4 * 61_210


def test_a_dense_run_is_the_plain_loop_anyone_would_write():
    images, labels, *_ = data.mnist5k()
    model = models.lenet5(Key(4).fold("init"))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.002)
    epochs = []
    for epoch in range(3):
        order, losses = Key(4).fold("order").fold(str(epoch)).permutation(120), []
        for start in (0, 50, 100):
            optimizer.zero_grad()
            some = order[start : start + 50]
            losses.append(torch.nn.functional.cross_entropy(model(images[some]), labels[some]))
            losses[-1].backward()
            optimizer.step()
        epochs.append(sum(losses).item() / 3)
    metrics = train(Run("ordinary", None, 4, training=Training(3, 50, 0.002)))
    assert metrics["train_loss"] == pytest.approx(epochs, rel=1e-4)


def test_an_epoch_visits_every_image_once_in_an_order_of_its_own():
    first, second = (list(batches(10, 4, Key(0).fold(str(epoch)))) for epoch in range(2))
    assert [len(batch) for batch in first] == [4, 4, 2]
    assert sorted(torch.cat(first).tolist()) == list(range(10))
    assert torch.cat(first).tolist() != torch.cat(second).tolist()


def test_accuracy_is_the_share_of_largest_logits_at_the_label():
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0], [0.0, 5.0]])
    assert accuracy(torch.nn.Identity(), logits, torch.tensor([0, 1, 1, 1])) == 0.75


def test_the_cost_of_a_dense_run_is_a_forward_and_a_backward_pass_of_every_image():
    metrics = train(Run("ordinary", None, 0, training=SHORT))
    assert metrics["samples"] == 240
    assert metrics["flops_init"] == 0
    assert metrics["flops_final"] == 832_520
    assert metrics["flops_training"] == metrics["flops_dense"] == 2_262_360
    assert metrics["flops_total"] == 240 * 2_262_360
    assert metrics["stored_init"] == metrics["stored_training"] == metrics["stored_bytes"] == 4 * 61_210


def test_the_cost_of_snip_is_its_batch_and_then_the_weights_it_keeps():
    metrics = train(Run("snip", 0.01, 0, training=SHORT))
    assert metrics["flops_init"] == 120 * 2_262_360  # all there is, in place of 128
    assert metrics["flops_total"] == metrics["flops_init"] + 240 * metrics["flops_training"]
    assert 2 * 612 < metrics["flops_final"] < metrics["flops_training"] < 3 * metrics["flops_final"]
    assert metrics["stored_init"] == 4 * 61_210 + 8 * 612
    assert metrics["stored_training"] == metrics["stored_bytes"] == 8 * 612


def test_the_cost_of_a_mover_includes_the_dense_gradients_it_looks_at():
    runs = {name: Run(name, 0.01, 0, training=Training(2, 5)) for name in ("random_pruning_erk", "set", "rigl")}
    still, drawn, grown = (figures(run) for run in runs.values())  # 48 steps, moves at 8, 16, 24 and 32 before 36
    assert still["flops_training"] == drawn["flops_training"]
    looked = 4 * 5 * (still["flops_training"] - still["flops_final"] + 832_520)  # without S^T g, with all of W's
    assert grown["flops_total"] == pytest.approx(still["flops_total"] + looked)
    assert still["flops_init"] == drawn["flops_init"] == grown["flops_init"] == 0
    assert (still["stored_bytes"], grown["stored_init"], grown["stored_bytes"]) == (4 * 612, 4 * 612, 8 * 612)
    assert len({tuple(metrics["train_loss"]) for metrics in (still, drawn, grown)}) == 3


def test_imp_trains_in_rounds_that_are_counted_and_reported():
    reported = []
    run = Run("imp", 0.01, 0, training=Training(1, 60), options=(("rounds", 2),))
    metrics = train(run, reported.append)
    assert reported == [1, 2, 3] == list(range(1, run.epochs + 1))
    assert len(metrics["train_loss"]) == len(metrics["test_accuracy"]) == 1
    assert (metrics["dim"], metrics["samples"], metrics["flops_init"]) == (612, 3 * 120, 0)
    assert metrics["flops_total"] > 120 * 2_262_360  # the first round is dense
    assert metrics["flops_training"] == metrics["flops_total"] / 360
    assert metrics["stored_init"] == 4 * 61_210 + 8 * 612
    assert metrics["stored_training"] == 2 * 4 * 61_210  # the dense network, and that to rewind to
    assert metrics["stored_bytes"] == 8 * 612
