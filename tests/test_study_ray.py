"""Laws of the Ray launcher, on a Ray of this machine that it starts itself, once for all of them."""

import os
import sys
import time
from pathlib import Path

import pytest

from subspace.study.entries.entry import Choice
from subspace.study.execution.launchers import Died
from subspace.study.execution.launchers.inline import Inline
from subspace.study.execution.launchers.ray import Ray, RayJob, cause
from subspace.study.results.store import StorageError, Store
from subspace.study.spec.study import Run, Training

ray = pytest.importorskip("ray")

MODULE = """
import os
import time
import torch
from torch import nn
from subspace.study.data.samples import Data, Tensors

def data(n=120):
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(n + 40, 6, generator=generator), torch.arange(n + 40) % 3
    return Data(Tensors(images[:n], labels[:n]), Tensors(images[n:], labels[n:]), 3)

def model(key, num_classes, fault=""):
    if fault == "killed":
        os.kill(os.getpid(), 9)
    if fault == "slow":
        time.sleep(60)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(key.bits(1)[0] >> 1))
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, num_classes))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the module, which is the present one meanwhile."""
    folder, before = tmp_path_factory.mktemp("ray"), Path.cwd()
    (folder / "slight.py").write_text(MODULE)
    os.chdir(folder)
    yield folder
    os.chdir(before)
    sys.modules.pop("slight", None)


@pytest.fixture(scope="module")
def launcher(place):
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with Ray(Path("results"), {}) as launcher:
        yield launcher
    assert not ray.is_initialized()  # what it started has been stopped


def run(seed=0, **model):
    train = Training(epochs=2, batch=20)
    return Run(
        Choice("dctps"), Choice("slight:model", model), Choice("slight:data"), density=0.3, seed=seed, train=train
    )


def until(condition, seconds=150.0):  # a machine under load takes a minute to start a worker of Ray
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def done(launcher, jobs):
    until(lambda: launcher.wait([job for job in jobs if not job.done()], 1.0) or all(job.done() for job in jobs))
    return jobs


def figures(store, each):
    record = store.read(each)
    assert record["error"] is None, record["traceback"]
    return [(epoch["train_loss"], epoch["test_accuracy"]) for epoch in record["metrics"]["epochs"]]


def test_tasks_bring_runs_to_their_records_as_this_process_would(launcher, place):
    runs = [run(seed) for seed in range(3)]
    jobs = done(launcher, launcher.submit(runs))
    assert [job.run for job in jobs] == runs
    assert [job.result() for job in jobs] == ["ended"] * 3
    Inline(place / "alone").submit(runs)
    for each in runs:
        assert figures(Store("results"), each) == figures(Store("alone"), each)


def test_tasks_that_die_or_cannot_store_say_why_and_harm_no_other(launcher):
    store, killed, full, good = Store("results"), run(fault="killed"), run(seed=11), run(seed=12)
    store.directory(full).write_text("in the way")
    jobs = done(launcher, launcher.submit([killed, full, good]))
    with pytest.raises(Died, match="the Ray task died: WorkerCrashedError: The worker died unexpectedly"):
        jobs[0].result()
    with pytest.raises(StorageError, match=f"{full.hash}.* must be writable"):
        jobs[1].result()
    assert jobs[2].result() == "ended"
    assert store.read(killed) is None
    assert len(figures(store, good)) == 2


def test_what_a_task_raises_is_its_cause_in_words(launcher):
    @ray.remote
    def task():
        raise ModuleNotFoundError("No module named 'slight'\nand more")

    job = RayJob(run(), task.remote())
    until(job.done)
    with pytest.raises(Died, match="^the Ray task died: ModuleNotFoundError: No module named 'slight'$"):
        job.result()
    assert cause(ray.exceptions.OutOfMemoryError("too much\nof it")) == "OutOfMemoryError: too much"


def test_leaving_the_block_stops_what_is_under_way_and_leaves_a_ray_that_was_there(launcher):
    store, each = Store("results"), run(fault="slow")

    def held():
        with store.held(each) as free:
            return not free

    with Ray(Path("results"), {"num_cpus": 2}) as inner:
        (job,) = inner.submit([each])
        waiting = inner.submit([run(seed=21)])  # which has no processor as yet
        until(lambda: held() or job.done())
        assert not job.done()
        assert not waiting[0].done()
    until(lambda: not held())
    assert ray.is_initialized()
    assert store.read(each) is None
    assert store.read(waiting[0].run) is None
    with pytest.raises(Died):
        waiting[0].result()


@pytest.mark.parametrize("name, near", [("num_gpu", "num_gpus"), ("adress", "address")])
def test_options_that_ray_does_not_have_are_errors_with_the_nearest(name, near, tmp_path):
    with pytest.raises(ValueError, match=f"options of ray must be .*, got '{name}'; did you mean '{near}'"):
        Ray(tmp_path, {name: 1})


def test_a_cluster_that_cannot_be_reached_is_an_error_of_one_sentence(tmp_path, monkeypatch):
    def init(*_, **__):
        raise ConnectionError("nobody answers")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(ValueError, match="address must be that of a Ray cluster, got 'there:1': nobody answers"):
        Ray(tmp_path, {"address": "there:1"}).__enter__()
