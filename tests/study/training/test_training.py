"""Laws of one run: pure, portable, fair, and loud when it diverges."""

import errno
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from subspace import Key
from subspace.study import data, models
from subspace.study.data import Data, Tensors
from subspace.study.entries.entry import Choice
from subspace.study.methods import METHODS
from subspace.study.methods.setting import Setting
from subspace.study.spec.study import Run, Training
from subspace.study.training.loop import batches, evaluate
from subspace.study.training.run import held_apart, train
from subspace.study.training.state import pack, unpack
from tests.support.cases import rest_slow

SHORT = Training(epochs=2, batch=50)


def run_of(name, density=None, seed=0, **fields):
    return Run(Choice(name), density=density, seed=seed, **fields)


@pytest.fixture(autouse=True)
def few_digits(monkeypatch):
    """120 bright squares, dark squares and stripes, in place of the digits: a tenth of a second an epoch."""
    noise = torch.from_numpy(Key(0).integers(160 * 784, 100)).reshape(160, 1, 28, 28) / 100
    labels = torch.arange(160) % 3
    noise[labels == 0, :, 8:20, 8:20] += 2
    noise[labels == 1, :, 8:20, 8:20] -= 2
    noise[labels == 2, :, ::4] += 2
    few = Data(Tensors(noise[:120], labels[:120]), Tensors(noise[120:], labels[120:]), 10)
    monkeypatch.setattr(data, "load", lambda choice: few)


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def figures(run, keeper=None):
    """All of a run's metrics but the time it took, and the bytes that Python held meanwhile."""
    metrics = train(run, keeper)
    return {
        **metrics,
        "seconds": 0,
        "peak_bytes": 0,
        "epochs": [{**epoch, "seconds": 0} for epoch in metrics["epochs"]],
    }


def losses(metrics):
    return [epoch["train_loss"] for epoch in metrics["epochs"]]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ordinary", "random_subspace", "snip", "dctps_rigl"])
def test_the_same_configuration_gives_the_same_bits(name, one_thread):
    density = None if name == "ordinary" else 0.0005 if name == "random_subspace" else 0.02
    run = run_of(name, density, 0, train=Training(epochs=1, batch=10))  # twelve steps: movers move once
    once = figures(run)
    assert once == figures(run)
    assert losses(once) != losses(figures(replace(run, seed=1)))


def test_no_global_generator_is_moved():
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    train(run_of("dctps", 0.01, 0, train=SHORT))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()
    assert random.getstate() == python_state


def test_no_global_generator_is_read():
    run = run_of("freezenet", 0.01, 0, train=SHORT)
    before = figures(run)
    torch.rand(3), np.random.rand(3), random.random()
    assert losses(figures(run)) == losses(before)


def test_the_curves_have_one_point_per_epoch_and_training_learns():
    metrics = train(run_of("ordinary", None, 0, train=Training(epochs=3, batch=30)))
    first, _, last = metrics["epochs"]
    assert [epoch["epoch"] for epoch in metrics["epochs"]] == [1, 2, 3]
    assert last["train_loss"] < first["train_loss"]
    assert last["test_accuracy"] > 0.9
    assert last["validation_accuracy"] is None
    assert sum(epoch["seconds"] for epoch in metrics["epochs"]) == pytest.approx(metrics["seconds"])
    assert metrics["seconds"] > 0


def test_a_diverging_run_stops_with_one_sentence():
    with pytest.raises(FloatingPointError, match=r"the loss must be finite, got (nan|inf) in epoch 1"):
        train(run_of("ordinary", None, 0, train=Training(2, 20, learning_rate=1e30)))


def test_sizes_are_those_of_the_model_and_the_learning_rate_follows_the_density():
    dense = train(run_of("ordinary", None, 0, train=Training(1, 120, learning_rate=0.004)))
    sparse = train(run_of("dctps", 0.01, 0, train=Training(1, 120, learning_rate=0.004)))
    assert (dense["weights"], dense["dim"], dense["alpha"], dense["learning_rate"]) == (61_210, 61_210, 0, 0.004)
    assert (sparse["weights"], sparse["dim"] - sparse["alpha"], sparse["alpha"]) == (61_210, 612, 5)
    assert sparse["learning_rate"] == pytest.approx(0.04)
    assert dense["trained_bytes"] == 4 * 61_210


def test_a_dense_run_is_the_plain_loop_anyone_would_write():
    images, labels = data.load(None).train.batch(torch.arange(120))
    model = models.lenet5(Key(4).fold("init"))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.002)
    epochs = []
    for epoch in range(3):
        order, means = Key(4).fold("order").fold(str(epoch)).permutation(120), []
        for start in (0, 50, 100):
            optimizer.zero_grad()
            some = order[start : start + 50]
            means.append(nn.functional.cross_entropy(model(images[some]), labels[some]))
            means[-1].backward()
            optimizer.step()
        epochs.append(sum(means).item() / 3)
    metrics = train(run_of("ordinary", None, 4, train=Training(3, 50, learning_rate=0.002)))
    assert losses(metrics) == pytest.approx(epochs, rel=1e-4)


def test_an_epoch_visits_every_image_once_in_an_order_of_its_own():
    first, second = (list(batches(10, 4, Key(0).fold(str(epoch)))) for epoch in range(2))
    assert [len(batch) for batch in first] == [4, 4, 2]
    assert sorted(torch.cat(first).tolist()) == list(range(10))
    assert torch.cat(first).tolist() != torch.cat(second).tolist()


def test_accuracy_is_the_share_of_largest_logits_at_the_label():
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0], [0.0, 5.0]])
    samples = Tensors(logits, torch.tensor([0, 1, 1, 1]))
    assert evaluate(torch.nn.Identity(), samples, torch.device("cpu"), size=3)[0] == 0.75


def test_the_test_loss_is_the_mean_over_all_labels_of_a_sequence_too():
    logits = torch.from_numpy(Key(0).normal(7 * 5 * 4)).float().reshape(7, 5, 4)  # 7 samples of 4 labels of 5 classes
    labels = torch.from_numpy(Key(1).integers(28, 5)).reshape(7, 4)
    share, loss = evaluate(torch.nn.Identity(), Tensors(logits, labels), torch.device("cpu"), size=3)
    by_label = logits.transpose(1, 2).reshape(28, 5).double()
    assert share == pytest.approx((by_label.argmax(1) == labels.flatten()).double().mean().item())
    assert loss == pytest.approx(-by_label.log_softmax(1)[torch.arange(28), labels.flatten()].mean().item())


@pytest.mark.slow
def test_a_burn_in_is_ordinary_training_and_the_subspace_goes_through_its_end():
    two, one = Training(epochs=2, batch=50), Training(epochs=1, batch=50, learning_rate=1e-12)
    options = {"offset": "initial", "burn_in": 2}
    metrics = train(Run(Choice("random_subspace", options), dim=5, train=replace(one, learning_rate=1e-30, epochs=1)))
    assert metrics["samples"] == 3 * 120
    assert [epoch["epoch"] for epoch in metrics["epochs"]] == [1]
    burnt = train(Run(Choice("random_subspace", options), dim=5, train=replace(two, learning_rate=2e-3)))
    cold = train(Run(Choice("random_subspace", {"offset": "initial"}), dim=5, train=replace(two, learning_rate=2e-3)))
    assert burnt["samples"] == 4 * 120
    assert cold["samples"] == 2 * 120
    assert burnt["dim"] == cold["dim"] == 5
    assert burnt["flops_total"] > cold["flops_total"]
    assert losses(burnt)[0] < 0.5 * losses(cold)[0]


@pytest.mark.slow
def test_a_lottery_subspace_reaches_what_its_training_reached_with_a_handful_of_numbers():
    run = Run(Choice("random_subspace", {"offset": "initial", "embedding": "lottery"}), dim=2)
    run = replace(run, train=Training(epochs=6, batch=20, learning_rate=2e-3))
    metrics = train(run)
    assert metrics["dim"] == 2
    assert metrics["samples"] == 2 * 6 * 120
    assert run.epochs == 12
    random = train(replace(run, method=Choice("random_subspace", {"offset": "initial"})))
    assert losses(metrics)[-1] < 0.2 * losses(random)[-1]


@pytest.mark.parametrize("embedding", rest_slow(["gaussian", "srht", "hashed", "lottery"], ["hashed"]))
def test_with_all_tensors_in_the_subspace_nothing_trains_beside_theta(embedding):
    options = {"offset": "initial", "embedding": embedding, "tensors": "all"}
    run = Run(Choice("random_subspace", options), Choice("mlp", {"norm": True}), dim=2, train=SHORT)
    metrics = train(run)
    assert (metrics["dim"], metrics["beside"]) == (2, {})
    assert sum(tensor["numel"] for tensor in metrics["tensors"]) == 200_010


def test_a_trajectory_of_fewer_points_than_directions_is_refused_in_one_sentence():
    options = {"offset": "initial", "embedding": "lottery"}
    with pytest.raises(ValueError, match=r"^dim must be in \[1, 3\], the independent directions of the points, got 4$"):
        train(Run(Choice("random_subspace", options), dim=4, train=Training(epochs=1, batch=40)))


def test_a_network_of_which_nothing_trains_is_refused_in_one_sentence():
    frozen = Run(
        Choice("dctps", {"alpha": "fixed", "frozen": True}), density=0.1, seed=0, model=Choice("lenet5"), train=SHORT
    )
    with pytest.raises(ValueError, match=r"^a network must have numbers that train, got none of lenet5 by DCTpS"):
        train(frozen)


def test_a_language_model_learns_and_its_accuracies_are_of_characters(monkeypatch):
    text = torch.arange(40).repeat(20)[: 32 * 16 + 1] % 7  # the next one is certain
    part = Tensors(text[:-1].reshape(32, 16), text[1:].reshape(32, 16))
    monkeypatch.setattr(data, "load", lambda choice: Data(part, part, 7))
    lstm = Choice("lstm_lm", {"width": 12})
    metrics = train(run_of("ordinary", None, 0, model=lstm, train=Training(epochs=30, batch=8, learning_rate=0.02)))
    first, last = metrics["epochs"][0], metrics["epochs"][-1]
    assert metrics["weights"] == 4 * 12 * (7 + 12) + 12 * 7
    assert metrics["beside"] == {"bias": 2 * 4 * 12 + 7}
    assert last["test_loss"] < 0.3 < first["test_loss"] < 2
    assert 0.9 < last["test_accuracy"] <= 1
    assert 0.9 < last["train_accuracy"] <= 1


def test_the_cost_of_a_dense_run_is_a_forward_and_a_backward_pass_of_every_image():
    metrics = train(run_of("ordinary", None, 0, train=SHORT))
    assert metrics["samples"] == 240
    assert metrics["flops_init"] == 0
    assert metrics["flops_forward"] == 832_520
    assert metrics["flops_training"] == metrics["flops_dense_training"] == 2_262_360
    assert metrics["flops_total"] == 240 * 2_262_360
    assert metrics["stored_init"] == metrics["stored_training"] == metrics["stored_bytes"] == 4 * 61_210


def chosen_bytes(metrics, ordered=True):
    """Of theta and supports that no key rebuilds: 2 + log2(n / k) bits a place (Elias), log2(n) where U has moved."""
    places = [(each["dim"], each["numel"]) for each in metrics["tensors"]]
    bits = sum(k * (2 + math.log2(n / k) if ordered else math.ceil(math.log2(n))) for k, n in places)
    return pytest.approx(4 * sum(k for k, _ in places) + bits / 8, rel=0.02)


def test_the_cost_of_snip_is_its_batch_and_then_the_weights_it_keeps():
    metrics = train(run_of("snip", 0.01, 0, train=SHORT))
    assert metrics["flops_init"] == 120 * 2_262_360  # all there is, in place of 128
    assert metrics["flops_total"] == metrics["flops_init"] + 240 * metrics["flops_training"]
    assert 2 * 612 < metrics["flops_forward"] < metrics["flops_training"] < 3 * metrics["flops_forward"]
    assert metrics["stored_init"] - 4 * 61_210 == chosen_bytes(metrics)
    assert metrics["stored_training"] == metrics["stored_bytes"] == chosen_bytes(metrics)


@pytest.mark.slow
def test_the_cost_of_a_mover_includes_the_dense_gradients_it_looks_at():
    runs = {name: run_of(name, 0.01, 0, train=Training(2, 5)) for name in ("random_pruning_erk", "set", "rigl")}
    still, drawn, grown = (figures(run) for run in runs.values())  # 48 steps, moves at 8, 16, 24 and 32 before 36
    assert still["flops_training"] == drawn["flops_training"]
    looked = 4 * 5 * (still["flops_training"] - still["flops_forward"] + 832_520)  # without S^T g, with all of W's
    assert grown["flops_total"] == pytest.approx(still["flops_total"] + looked)
    assert still["flops_init"] == drawn["flops_init"] == grown["flops_init"] == 0
    assert (still["stored_bytes"], grown["stored_init"], grown["stored_bytes"]) == (
        4 * 612,
        4 * 612,
        chosen_bytes(grown, ordered=False),
    )
    assert len({tuple(losses(metrics)) for metrics in (still, drawn, grown)}) == 3


def test_imp_trains_in_rounds_that_are_counted_and_kept():
    keeper = Keeper()
    run = Run(Choice("imp", {"rounds": 2}), density=0.01, train=Training(1, 60))
    metrics = train(run, keeper)
    done = unpack(keeper.kept)["done"]
    assert [epoch["epoch"] for epoch in done] == [1, 2, 3] == list(range(1, run.epochs + 1))
    assert [epoch["test_accuracy"] is None for epoch in done] == [True, True, False]
    assert len(metrics["epochs"]) == 1
    assert (metrics["dim"], metrics["samples"], metrics["flops_init"]) == (612, 3 * 120, 0)
    assert metrics["flops_total"] > 120 * 2_262_360  # the first round is dense
    assert metrics["flops_training"] == metrics["flops_total"] / 360
    assert metrics["stored_init"] - 4 * 61_210 == chosen_bytes(metrics)
    assert metrics["stored_training"] == 2 * 4 * 61_210  # the dense network, and that to rewind to
    assert metrics["stored_bytes"] == chosen_bytes(metrics)


class Killed(BaseException):
    """In place of a crash."""


class Keeper:
    """Keeps bytes, as a store does; `stop`: crash after so many epochs."""

    def __init__(self, stop=None):
        self.stop, self.kept, self.times = stop, None, 0

    def load(self):
        return unpack(self.kept) if self.kept else None

    def save(self, state):
        self.kept, self.times = pack(state), self.times + 1
        if self.times == self.stop:
            raise Killed


def interrupted(run, stop):
    """The figures of a run that is interrupted after so many epochs, and resumed."""
    keeper = Keeper(stop)
    with pytest.raises(Killed):
        train(run, keeper)
    keeper.stop = None
    return figures(run, keeper)


SCHEDULED = Training(epochs=3, batch=40, schedule={"name": "StepLR", "step_size": 1})


THOROUGH = ("imp", "rigl", "dctps")


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_run_ends_with_the_bits_of_one_that_was_not_interrupted(name, one_thread):
    options = {n: 2 for n in ("rounds", "steps", "delta_t") if n in METHODS[name].options}
    density = {"doped": 0.2}.get(name, 0.01) if METHODS[name].has_density else None  # at 0.01 it has no factors
    run = Run(Choice(name, options), density=density, seed=3, train=SCHEDULED)
    keeper = Keeper()
    whole = figures(run, keeper)
    stops = {keeper.times // 2}
    if name in THOROUGH:
        assert figures(run) == whole  # where nothing is kept
        stops |= {1, keeper.times - 1, keeper.times}
    for stop in stops:
        assert interrupted(run, stop) == whole, stop


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"basis": "dct", "budget": "erk"}])
def test_a_network_pruned_gradually_ends_with_the_exact_density(options):
    run = Run(Choice("gradual", {"delta_t": 1} | options), density=0.1, train=SHORT)
    metrics = figures(run)
    assert metrics["dim"] == sum(tensor["dim"] for tensor in metrics["tensors"]) == round(0.1 * metrics["weights"])
    assert metrics["trained_bytes"] == 4 * metrics["weights"]  # as many numbers train at first
    assert metrics["stored_bytes"] < 0.3 * metrics["stored_training"]
    assert metrics["learning_rate"] == run.train.learning_rate
    assert metrics["flops_training"] > metrics["flops_forward"]


def dropping(num_classes):
    """A network with dropout and batch norm, which draw from torch's generator and keep running statistics."""
    layers = nn.Conv2d(1, 4, 5, stride=3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5)
    return nn.Sequential(*layers, nn.Linear(256, num_classes))


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [{"name": "SGD", "momentum": 0.9, "weight_decay": 5e-4}, "AdamW"])
@pytest.mark.parametrize("name", ["dctps_rigl", "imp"])
def test_dropout_and_running_statistics_and_momentum_are_resumed_too(name, optimizer, one_thread):
    train_ = Training(
        epochs=3, batch=40, optimizer=optimizer, validation=0.25, schedule={"name": "StepLR", "step_size": 1}
    )
    options = {"rounds": 1} if name == "imp" else {"delta_t": 2}
    run = Run(Choice(name, options), Choice(f"{__name__}:dropping"), density=0.1, train=train_)
    whole = figures(run)
    for stop in (1, 2):
        assert interrupted(run, stop) == whole
    assert 0 <= whole["epochs"][-1]["validation_accuracy"] <= 1
    assert whole["samples"] == 90 * run.epochs


def test_the_training_accuracy_is_that_of_the_batches_as_they_are_met():
    """At a learning rate of next to nothing it is that of the network at its start, on those it trains on."""
    run = run_of("dctps", 0.1, train=replace(SHORT, learning_rate=1e-12, validation=0.25))
    metrics = train(run)
    model = METHODS["dctps"].apply(models.build(run.model, data.load(None), Key(0).fold("init")), setting_of(run))
    samples, _ = held_apart(data.load(None).train, 0.25)
    expected = evaluate(model, samples, torch.device("cpu"))[0]
    assert [epoch["train_accuracy"] for epoch in metrics["epochs"]] == [expected, expected]


def setting_of(run):
    return Setting({"density": run.density}, run.density, run.seed, run.method.options, None, 0, lambda model: None)


def test_what_is_held_apart_is_never_trained_on(monkeypatch):
    seen = set()
    whole = data.load(None)

    class Watched(Tensors):
        def batches(self, order, key):
            for places in order:
                inputs, labels = self.batch(places)
                seen.update(inputs.sum((1, 2, 3)).tolist())
                yield inputs, labels

        def subset(self, places):
            return Watched(self.inputs[places], self.labels[places])

    watched = whole._replace(train=Watched(whole.train.inputs, whole.train.labels))
    monkeypatch.setattr(data, "load", lambda choice: watched)
    train(run_of("ordinary", train=replace(SHORT, validation=0.25)))
    assert len(seen) == 90


def test_a_schedule_and_the_scaling_of_the_learning_rate_are_followed():
    rates = [epoch["learning_rate"] for epoch in train(run_of("dctps", 0.04, train=SCHEDULED))["epochs"]]
    assert rates == pytest.approx([3e-3 / 0.2, 3e-4 / 0.2, 3e-5 / 0.2])
    flat = train(run_of("dctps", 0.04, train=replace(SHORT, scaling="none")))
    assert flat["learning_rate"] == 3e-3
    by_dim = train(Run(Choice("dctps"), dim=612, train=SHORT))
    assert by_dim["learning_rate"] == pytest.approx(3e-3 / (612 / 61_210) ** 0.5)
    assert by_dim["dim"] - by_dim["alpha"] == 612


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "Adamm"}, r"optim must be one of .*, got 'Adamm'; did you mean 'Adam'\?"),
        (
            {"optimizer": {"name": "SGD", "moment": 1}},
            r"options of SGD must be those of torch.optim.SGD, got: .*moment",
        ),
        (
            {"schedule": "StepLR"},
            r"options of StepLR must be those of torch.optim.lr_scheduler.StepLR, got: .*step_size",
        ),
        ({"validation": 0.001}, r"validation must leave some of 120 samples on either side, got 0.001"),
    ],
)
def test_what_torch_does_not_have_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        train(run_of("dctps", 0.04, train=replace(SHORT, **change)))


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_training_needs_no_folder_for_temporary_files(name, monkeypatch):

    def refused(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    for function in ("mkdtemp", "mkstemp"):
        monkeypatch.setattr(f"tempfile.{function}", refused)
    options = {n: 1 for n in ("rounds", "steps", "delta_t") if n in METHODS[name].options}
    run = Run(Choice(name, options), density=0.01 if METHODS[name].has_density else None, train=Training(1, 60))
    keeper = Keeper()
    assert train(run, keeper)["file_bytes"] > 0
    assert keeper.load()["model"] is not None
