"""Laws of data-parallel training: as in one process, only theta travels, and no crash loses or hangs anything."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from subspace.study.distributed import rendezvous as world
from subspace.study.distributed import team as parallel
from subspace.study.distributed.team import Team
from subspace.study.entries.entry import Choice
from subspace.study.execution.launchers.inline import Inline
from subspace.study.results.store import StorageError, Store
from subspace.study.spec.study import Run, Training

MODULE = """
import os
import torch
from torch import nn
from subspace.study.data.samples import Data, Tensors

def data(n=101):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(n + 60, 1, 8, 8, generator=generator)
    labels = (images.mean(dim=(1, 2, 3)) * 20).clamp(-1.4, 1.4).round().long() + 1
    return Data(Tensors(images[:n], labels[:n]), Tensors(images[n:], labels[n:]), 3)

def model(key, num_classes, norm=False, dropout=0.0, fault=""):
    here = int(os.environ.get("RANK", 0))
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
SCRIPT = """
import json, os, sys
from pathlib import Path
from subspace.study.distributed import team as parallel
from subspace.study.spec.study import Run
from subspace.study.execution.launchers.torchrun import Torchrun, begin
Path(f"pid-{os.environ['RANK']}").write_text(str(os.getpid()))
parallel.ALONE = float(sys.argv[1])
begin()
with Torchrun(Path("results")) as launcher:
    for configuration in json.loads(Path("runs.json").read_text()):
        launcher.submit([Run.parse(configuration)])
"""


def run(method, density=None, epochs=2, processes=2, rate=3e-3, n=101, **model):
    """Batches of 25 samples: of 101, the last has fewer samples than processes, and all others divide unevenly."""
    train = Training(epochs=epochs, batch=25, processes=processes, learning_rate=rate)
    chosen = Choice("small:model", model)
    return Run(method, chosen, Choice("small:data", {"n": n}), density=density, train=train)


RIGL = Choice("rigl", {"delta_t": 2})
SAME = {
    "ordinary": lambda processes: run(Choice("ordinary"), processes=processes),
    "dctps": lambda processes: run(Choice("dctps"), 0.2, processes=processes),
    "rigl": lambda processes: run(RIGL, 0.2, processes=processes),
    "imp": lambda processes: run(Choice("imp", {"rounds": 2}), 0.2, epochs=1, processes=processes),
    "a tensor without entries": lambda processes: run(Choice("magnitude"), 0.005, processes=processes),
}
LONG = run(Choice("dctps_rigl", {"delta_t": 3}), 0.2, epochs=40, n=150, norm=True, dropout=0.2)
NOT_FINITE = run(Choice("ordinary"), rate=1e30)
ALIKE = run(Choice("ordinary"), fault="alike")
DIFFERS = run(Choice("ordinary"), fault="differs")
ALONE = run(Choice("ordinary"), fault="alone")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the modules and the script, which is the present one meanwhile."""
    folder, before = tmp_path_factory.mktemp("parallel"), os.getcwd()
    (folder / "small.py").write_text(MODULE)
    (folder / "script.py").write_text(SCRIPT)
    os.chdir(folder)
    yield folder
    os.chdir(before)
    sys.modules.pop("small", None)


def torchrun(runs, alone=30.0):
    """Start two processes that train the runs, in the present folder."""
    with open("runs.json", "w") as file:
        json.dump([each.configuration() for each in runs], file)
    for number in range(2):
        if os.path.exists(f"pid-{number}"):
            os.remove(f"pid-{number}")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "script.py"]
    return subprocess.Popen([*command, str(alone)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def together(place):
    """What two processes made of all the runs, and what torchrun said; the last run fails in one process alone."""
    process = torchrun([*[make(2) for make in SAME.values()], NOT_FINITE, ALIKE, DIFFERS, LONG, ALONE], alone=1.0)
    said = process.communicate(timeout=120)[1]
    return Store("results"), process.returncode, said


@pytest.fixture(scope="module")
def alone(place):
    store = Store("alone")
    Inline(store.folder).submit([make(1) for make in SAME.values()])
    return store


def finished(store, each):
    record = store.read(each)
    assert record is not None
    assert record["error"] is None, record["traceback"]
    return record["metrics"]


@pytest.mark.parametrize("name", SAME)
def test_two_processes_train_as_one_does(name, together, alone):
    two, one = finished(together[0], SAME[name](2)), finished(alone, SAME[name](1))
    assert len(two["epochs"]) == len(one["epochs"]) > 0
    for figures, expected in zip(two["epochs"], one["epochs"], strict=True):
        assert figures["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-4)
        assert figures["test_accuracy"] == pytest.approx(expected["test_accuracy"], abs=0.02)
    for figure in ("dim", "beside", "samples", "flops_total", "tensors", "stored_bytes", "learning_rate"):
        assert two[figure] == one[figure], figure


@pytest.mark.parametrize("name", ["ordinary", "dctps", "rigl"])
def test_a_step_sends_the_trained_numbers_and_nothing_else(name, together, alone):
    metrics = finished(together[0], SAME[name](2))
    trained = metrics["dim"] + sum(metrics["beside"].values())
    assert metrics["reduced_bytes"] == 4 * trained
    assert metrics["reduced_bytes_dense"] == 4 * (metrics["weights"] + sum(metrics["beside"].values()))
    assert (metrics["reduced_bytes"] < 0.3 * metrics["reduced_bytes_dense"]) == (name != "ordinary")
    single = finished(alone, SAME[name](1))
    assert single["reduced_bytes"] == single["reduced_bytes_dense"] == 0


def test_a_failure_of_all_processes_is_recorded_and_stops_nothing_else(together):
    store, _, _ = together
    assert "FloatingPointError: the loss must be finite" in store.read(NOT_FINITE)["error"]
    assert store.read(ALIKE)["error"] == "LookupError: no such thing anywhere"
    finished(store, LONG)  # which came after them


def test_processes_that_chose_different_networks_are_found_out(together):
    assert "all processes must have the same network" in together[0].read(DIFFERS)["error"]


def test_a_failure_of_one_process_alone_ends_all_and_is_told(together):
    store, code, said = together
    record = store.read(ALONE)
    assert code != 0
    assert "MemoryError: no room here" in said
    assert record is None or "no room here" in record["error"]  # whichever was first: the record, or the end


def until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def alive(pid):
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="kills")
def test_killed_processes_lose_the_epoch_at_most_and_change_no_bit(together, tmp_path):
    expected = finished(together[0], LONG)
    os.rename("results", "undisturbed")
    store = Store("results")
    try:
        for victim in ("pid-1", "torchrun"):
            before = len(store.progress(LONG))
            process = torchrun([LONG])
            until(lambda before=before: len(store.progress(LONG)) > before)
            pids = [int(Path(f"pid-{number}").read_text()) for number in range(2)]
            os.kill(pids[1] if victim == "pid-1" else process.pid, signal.SIGKILL)
            assert process.wait(timeout=20) != 0
            until(lambda pids=pids: not any(map(alive, pids)))
            assert store.read(LONG) is None, "the run must have been interrupted: let it take longer"
        process = torchrun([LONG])
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 0, said
        metrics = finished(store, LONG)
    finally:
        os.rename("results", tmp_path / "disturbed")
        os.rename("undisturbed", "results")
    assert timeless(metrics) == timeless(expected)


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
    with team as joined:
        assert joined.wrap(model) is model
        assert team.weight(3, 3) == 1.0
        assert team.total(0.1) == 0.1
        assert team.share(model) is model
        assert team.reduced_bytes == team.gradient_bytes(model) == 0


@pytest.fixture
def word(monkeypatch):
    """Where two processes leave word for each other; there is no process group to part from."""
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr(parallel, "ALONE", 0.2)
    return dist.HashStore()


def test_an_error_that_another_process_caused_has_its_cause(word):
    word.compare_set("cause", "", "process 1: MemoryError: no room")
    word.add("ended", 1)
    with pytest.raises(RuntimeError, match="^process 1: MemoryError: no room$"), Unentered(2, 0, word=word):
        raise RuntimeError("Connection closed by peer")


def test_an_error_that_all_processes_have_is_each_ones_own(word):
    for rank, others in ((0, 1), (1, 0)):
        word.add("ended", others)
        with pytest.raises(ZeroDivisionError, match="^alike$"), Unentered(2, rank, word=word):
            raise ZeroDivisionError("alike")


def test_an_error_of_one_process_alone_ends_it_and_is_no_record_of_the_run(word):
    alone = "as process 1 failed alone: MemoryError: no room"
    with pytest.raises(SystemExit, match=alone), Unentered(2, 1, word=word):
        raise MemoryError("no room")


def test_a_store_that_cannot_be_written_is_told_at_once(word, monkeypatch):
    monkeypatch.setattr(parallel, "ALONE", 1000.0)
    with pytest.raises(StorageError, match="full"), Unentered(2, 0, word=word):
        raise StorageError("full")


@pytest.mark.parametrize("error", [None, MemoryError("no room")])
def test_a_torchrun_that_has_gone_is_no_failure_of_the_run(error):
    class Gone:
        def add(self, *_):
            raise dist.DistNetworkError("connection reset")

        compare_set = add

    with pytest.raises(SystemExit, match="stopped, as torchrun has gone: connection reset"):
        Unentered(2, 0, word=Gone()).__exit__(type(error), error, None)


class Unentered(Team):
    """A team that has met already."""

    def __enter__(self):
        return self


@pytest.mark.parametrize(
    "started, wanted, command",
    [
        (1, 2, "torchrun --nproc-per-node 2 -m subspace.study.cli study"),
        (3, 2, "torchrun --nproc-per-node 2 -m subspace.study.cli study"),
        (2, 1, "as subspace study"),
    ],
)
def test_another_number_of_processes_is_an_error_that_has_the_command(started, wanted, command, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(started))
    with pytest.raises(ValueError, match=f"got {wanted}: .*{command}"):
        world.check(wanted)
    world.check(started)
