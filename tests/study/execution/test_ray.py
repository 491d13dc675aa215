"""What is Ray's alone: its options, its causes, and a Ray that was there before."""

import time
from pathlib import Path

import pytest

from subspace.study.entries.entry import Choice
from subspace.study.execution.launchers import WorkerDied
from subspace.study.execution.launchers.ray import Ray, RayJob, cause
from subspace.study.results.store import Store
from subspace.study.spec.study import Run, Training

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.ray


def run(seed=0, **model):
    train = Training(epochs=2, batch=20)
    return Run(Choice("dctps"), Choice("tiny:model", model), Choice("tiny:data"), density=0.3, seed=seed, train=train)


def wait_until(condition):
    while not condition():
        time.sleep(0.05)


def test_what_a_task_raises_is_its_cause_in_words(started_ray, tiny_project):
    @ray.remote
    def task():
        raise ModuleNotFoundError("No module named 'slight'\nand more")

    job = RayJob(run(), task.remote())
    wait_until(job.done)
    with pytest.raises(WorkerDied, match="^the Ray task died: ModuleNotFoundError: No module named 'slight'$"):
        job.result()
    assert cause(ray.exceptions.OutOfMemoryError("too much\nof it")) == "OutOfMemoryError: too much"


def test_leaving_the_block_stops_what_has_not_ended_and_leaves_a_ray_that_was_there(started_ray, tiny_project):
    store, each = Store("results"), run(fault="slow")

    def held():
        with store.held(each) as free:
            return not free

    with Ray(Path("results"), {"num_cpus": 2}) as inner:
        (job,) = inner.submit([each])
        waiting = inner.submit([run(seed=21)])  # which has no processor as yet
        wait_until(lambda: held() or job.done())
        assert not job.done()
        assert not waiting[0].done()
    wait_until(lambda: not held())
    assert ray.is_initialized()
    assert store.read(each) is None
    assert store.read(waiting[0].run) is None
    with pytest.raises(WorkerDied):
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
