"""The peak of a training step is what is counted by hand, whatever ran before, and measuring it changes nothing."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from subspace import Key, methods, recipes, structured
from subspace.study.training.peak_memory import Peak

BATCH = 64
INPUTS = torch.from_numpy(Key(0).normal(BATCH * 1000, dtype="float32")).reshape(BATCH, 1000)
LABELS = torch.arange(BATCH) % 10
WEIGHTS = 1000 * 1000 + 10 * 1000


def net():
    """1000 -> 1000 -> 10 without biases."""
    return nn.Sequential(nn.Linear(1000, 1000, bias=False), nn.ReLU(), nn.Linear(1000, 10, bias=False))


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.01)


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=0.01, foreach=False)


def train(model, optimizer, peak=None, steps=2):
    for _ in range(steps):
        with peak.step(INPUTS, LABELS):
            optimizer.zero_grad()
            loss = cross_entropy(model(INPUTS), LABELS)
            loss.backward()
            optimizer.step()
    return loss.item()


def peak_bytes(model, make=sgd, steps=2):
    optimizer = make(model)
    peak = Peak(model, optimizer)
    train(model, optimizer, peak, steps)
    return peak.bytes


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_a_step_of_sgd_holds_weights_gradients_the_batch_and_activations():
    activations = 4 * BATCH * (1000 + 1000)  # after the first layer and the ReLU; or their gradients
    by_hand = 2 * 4 * WEIGHTS + INPUTS.nbytes + LABELS.nbytes + activations
    assert peak_bytes(net()) == pytest.approx(by_hand, rel=0.03)


def test_a_step_of_adam_holds_its_two_moments_as_well():
    moments = 2 * 4 * WEIGHTS
    largest = 2 * 4 * 1000 * 1000  # two temporaries of the largest tensor
    by_hand = 2 * 4 * WEIGHTS + moments + INPUTS.nbytes
    assert by_hand + largest / 2 < peak_bytes(net(), adam) < 1.03 * (by_hand + largest)


def test_frozen_weights_have_no_gradient():
    model = net()
    model[0].weight.requires_grad_(False)
    assert peak_bytes(net()) - peak_bytes(model) == pytest.approx(4 * 1000 * 1000, rel=0.1)


def test_what_is_held_beside_the_model_counts_and_what_is_shared_counts_once():
    model, beside = net(), torch.ones(1000, 500)
    optimizer = sgd(model)
    peak = Peak(model, optimizer, beside, beside[:3], model[0])
    train(model, optimizer, peak)
    assert peak.bytes - peak_bytes(net()) == pytest.approx(beside.nbytes, rel=0.05)


def test_a_structured_dctps_step_holds_a_fraction_of_a_dense_one():
    dense = peak_bytes(net(), adam)
    built = peak_bytes(recipes.dctps(net(), density=0.01), adam)
    fast = peak_bytes(structured(recipes.dctps(net(), density=0.01)), adam)
    assert fast < built < dense
    assert fast < dense / 5


def test_a_stored_u_counts():
    least = 4 * WEIGHTS * 20  # U alone
    assert least < peak_bytes(recipes.random_subspace(net(), dim=20)) < least + 10 * 4 * WEIGHTS


@pytest.mark.parametrize("recipe", [recipes.random_pruning, recipes.dctps])
def test_what_ran_before_in_the_process_does_not_count(recipe):
    def once():
        return peak_bytes(structured(recipe(net(), density=0.05)), adam)

    first = once()
    others = [net() for _ in range(3)]
    peak_bytes(others[0])
    again = once()
    assert again == pytest.approx(first, rel=0.02)
    assert len(others) == 3


def test_tables_that_the_first_step_makes_and_keeps_count_in_the_second():
    model = structured(recipes.random_pruning(net(), density=0.2))
    two, one = peak_bytes(model), peak_bytes(model)  # the second time its tables are there already, made by another
    assert two - one > 4 * 0.2 * WEIGHTS


def test_growing_counts_where_the_step_is_one_of_those_measured():
    def rigl(steps):
        model = structured(recipes.rigl(net(), density=0.01))
        optimizer = sgd(model)
        mover = methods.RigL(model, optimizer, t_end=100, delta_t=3)
        peak = Peak(model, optimizer, steps=steps)
        for _ in range(4):
            with peak.step(INPUTS):
                optimizer.zero_grad()
                cross_entropy(model(INPUTS), LABELS).backward()
                optimizer.step()
                mover.step(lambda net: cross_entropy(net(INPUTS), LABELS))
        return peak.bytes

    assert rigl({0, 1, 2}) > rigl({0, 1}) + 0.9 * 4 * WEIGHTS


def test_measuring_changes_no_bit():
    def weights(steps):
        torch.manual_seed(0)
        model = structured(recipes.dctps(net(), density=0.01))
        optimizer = adam(model)
        loss = train(model, optimizer, Peak(model, optimizer, steps=steps), 4)
        return [loss, *(value.tolist() for value in model.state_dict().values())]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert weights(()) == weights((0, 1, 3))
    torch.set_num_threads(threads)


def test_steps_that_are_not_measured_cost_nothing_and_a_failing_one_stops_the_measurement():
    peak = Peak(net(), steps=(1,))
    with peak.step():
        torch.ones(1000)
    assert peak.bytes == 0
    with pytest.raises(RuntimeError, match="diverged"), peak.step():
        raise RuntimeError("diverged")
    assert peak.bytes == 0
    assert peak_bytes(net()) > 0  # the profiler was let go of


@pytest.mark.slow
def test_nothing_is_printed():
    code = """
import torch
from torch import nn
from subspace.study.training.peak_memory import Peak
model = nn.Linear(100, 100)
optimizer = torch.optim.Adam(model.parameters())
peak = Peak(model, optimizer, steps=(0, 1, 5))
def step(x):
    with peak.step(x):
        optimizer.zero_grad()
        model(x).sum().backward()
        optimizer.step()
for _ in range(7):
    step(torch.ones(4, 100))
assert peak.bytes
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_step_is_counted_on_its_device():
    model, inputs, labels = net().cuda(), INPUTS.cuda(), LABELS.cuda()
    beside = torch.ones(10**6, device="cuda")
    optimizer = sgd(model)
    peak = Peak(model, optimizer)
    for _ in range(2):
        with peak.step(inputs, labels):
            optimizer.zero_grad()
            cross_entropy(model(inputs), labels).backward()
            optimizer.step()
    by_hand = 2 * 4 * WEIGHTS + inputs.nbytes + 4 * BATCH * 2000
    assert by_hand - 10**6 < peak.bytes < by_hand + 20e6  # a workspace of cuBLAS
    assert len(beside) == 10**6
