"""Laws of data-parallel training: as in one process, only theta travels, and no crash loses or hangs anything."""

import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from subspace.study.entries.entry import Choice
from subspace.study.execution.execute import execute
from subspace.study.execution.launchers.inline import Inline
from subspace.study.results.store import Store
from subspace.study.spec.study import Run, Training
from subspace.study.training import processes
from subspace.study.training.team import Team
from tests.support.processes import QUICK, start_quickly

MODULE = """
from pathlib import Path
import os
import torch
import torch.distributed as dist
from torch import nn
from subspace.study.data.samples import Data, Tensors

def data(n=101):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(n + 60, 1, 8, 8, generator=generator)
    labels = (images.mean(dim=(1, 2, 3)) * 20).clamp(-1.4, 1.4).round().long() + 1
    return Data(Tensors(images[:n], labels[:n]), Tensors(images[n:], labels[n:]), 3)

def model(key, num_classes, norm=False, dropout=0.0, fault=""):
    here = dist.get_rank() if dist.is_initialized() else 0
    Path(f"pid-{here}").write_text(str(os.getpid()))
    if fault == "alone" and here == 1:
        raise MemoryError("no room here")
    if fault == "alike":
        raise LookupError("no such thing anywhere")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(key.bits(1)[0] >> 1) + (here if fault == "differs" else 0))
        norms = [nn.BatchNorm2d(4)] if norm else []
        layers = [nn.Conv2d(1, 4, 3), *norms, nn.ReLU(), nn.Flatten(), nn.Dropout(dropout), nn.Linear(144, num_classes)]
        return nn.Sequential(*layers)
"""


def run(method, density=None, epochs=2, processes=2, rate=3e-3, n=101, **model):
    """Batches of 25 samples: of 101, the last has fewer samples than processes, and all others divide unevenly."""
    train = Training(epochs=epochs, batch=25, processes=processes, learning_rate=rate)
    return Run(method, Choice("small:model", model), Choice("small:data", {"n": n}), density=density, train=train)


SAME = {
    "ordinary": lambda processes: run(Choice("ordinary"), processes=processes),
    "dctps": lambda processes: run(Choice("dctps"), 0.2, processes=processes),
    "rigl": lambda processes: run(Choice("rigl", {"delta_t": 2}), 0.2, processes=processes),
    "imp": lambda processes: run(Choice("imp", {"rounds": 2}), 0.2, epochs=1, processes=processes),
    "a tensor without entries": lambda processes: run(Choice("magnitude"), 0.005, processes=processes),
}
LONG = run(Choice("dctps_rigl", {"delta_t": 3}), 0.2, epochs=16, n=150, norm=True, dropout=0.2)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the module, which is the present one while the tests run."""
    folder = tmp_path_factory.mktemp("team")
    (folder / "small.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.getcwd())  # processes import the package from where this one did
        patch.chdir(folder)
        yield folder
    sys.modules.pop("small", None)


def execute_quickly(run, folder):
    """The same in another process than pytest's."""
    processes.spawn = start_quickly
    execute(run, folder)


@pytest.fixture(scope="module")
def store(place):
    return Store("results")


def trained(store, each):
    if store.read(each) is None:
        Inline(store.folder).submit([each])
    record = store.read(each)
    assert record["error"] is None, record["traceback"]
    return record["metrics"]


@pytest.mark.torchrun
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", SAME)
def test_two_processes_train_as_one_does_and_send_the_trained_numbers_alone(name, store):
    two, one = trained(store, SAME[name](2)), trained(store, SAME[name](1))
    assert len(two["epochs"]) == len(one["epochs"]) > 0
    for figures, expected in zip(two["epochs"], one["epochs"], strict=True):
        assert figures["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-4)
        for accuracy in ("train_accuracy", "test_accuracy"):
            assert figures[accuracy] == pytest.approx(expected[accuracy], abs=0.02)
    for figure in ("dim", "beside", "samples", "flops_total", "tensors", "stored_bytes", "learning_rate"):
        assert two[figure] == one[figure], figure
    trained_numbers = two["dim"] + sum(two["beside"].values())
    assert two["reduced_bytes"] == 4 * trained_numbers
    assert two["reduced_bytes_dense"] == 4 * (two["weights"] + sum(two["beside"].values()))
    assert one["reduced_bytes"] == one["reduced_bytes_dense"] == 0


@pytest.mark.torchrun
@pytest.mark.usefixtures("quick")
def test_processes_move_u_alike_though_dropout_and_norms_differ_in_each(store):
    metrics = trained(store, run(Choice("rigl", {"delta_t": 2}), 0.2, norm=True, dropout=0.3))
    assert [epoch["epoch"] for epoch in metrics["epochs"]] == [1, 2]


@pytest.mark.torchrun
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ({"rate": 1e30}, r"process [01]: FloatingPointError: the loss must be finite"),
        ({"fault": "alike"}, r"process [01]: LookupError: no such thing anywhere"),
        ({"fault": "differs"}, r"process [01]: RuntimeError: all processes must have the same network"),
        ({"fault": "alone"}, r"process 1: MemoryError: no room here"),
    ],
)
def test_the_failure_of_a_process_is_that_of_the_run(fault, error, store):
    each = run(Choice("ordinary"), **fault)
    Inline(store.folder).submit([each])
    record = store.read(each)
    assert record["status"] == "failed"
    assert re.match(f"RuntimeError: {error}", record["error"]), record["error"]
    assert "in model" in record["traceback"] or "small.py" not in record["traceback"]


def wait_until(condition):
    while not condition():
        time.sleep(0.01)


def alive(pid):
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


@pytest.mark.torchrun
@pytest.mark.crash
@pytest.mark.usefixtures("quick")
@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_killed_processes_lose_the_epoch_at_most_and_change_no_bit(place):
    undisturbed, store = Store("undisturbed"), Store("disturbed")
    expected = trained(undisturbed, LONG)
    for victim in ("one of them", "all but them"):
        before = len(store.progress(LONG))
        process = QUICK.Process(target=execute_quickly, args=(LONG, store.folder))
        process.start()
        wait_until(lambda before=before: len(store.progress(LONG)) > before)
        pids = [int(Path(f"pid-{number}").read_text()) for number in range(2)]
        os.kill(pids[1] if victim == "one of them" else process.pid, signal.SIGKILL)
        process.join()
        wait_until(lambda pids=pids: not any(map(alive, pids)))
        record = store.read(LONG)
        if victim == "one of them":
            lost = "process 1 terminated with signal SIGKILL", "process 0: "  # whichever is noticed first
            assert any(each in record["error"] for each in lost)
        else:
            assert record["attempts"] == 1, "the run must have been interrupted: let it take longer"
    execute(LONG, store.folder)
    assert timeless(store.read(LONG)["metrics"]) == timeless(expected)


def timeless(metrics):
    epochs = [{name: value for name, value in epoch.items() if name != "seconds"} for epoch in metrics["epochs"]]
    return {**metrics, "epochs": epochs, "seconds": None, "peak_bytes": None}


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 8])
def test_the_weighted_gradients_of_the_parts_add_up_to_that_of_the_batch(size, n):
    torch.manual_seed(n)
    inputs, theta = torch.randn(n, 5, dtype=torch.float64), torch.randn(5, dtype=torch.float64, requires_grad=True)

    def gradient(places):
        return torch.autograd.grad((inputs[places] @ theta).tanh().square().mean(), theta)[0]

    places, total, seen = torch.randperm(n), torch.zeros(5, dtype=torch.float64), []
    for rank in range(size):
        part = Team(size, rank).shard(places)
        total += Team(size, rank).weight(len(part), n) * gradient(part)
        seen += part.tolist()
    torch.testing.assert_close(total, gradient(places))
    assert n < size or sorted(seen) == list(range(n))


def test_one_process_needs_nothing():
    team, model = Team(), torch.nn.Linear(2, 2)
    assert team.wrap(model) is model
    assert team.weight(3, 3) == 1.0
    assert team.total(0.1) == 0.1
    assert team.reduced_bytes == team.gradient_bytes(model) == 0
    team.follow(model)
    team.check_same(model)
