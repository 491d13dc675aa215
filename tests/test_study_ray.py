"""Laws of the launcher on Ray, on a local one: as in the pool, each run comes to its record once, whatever fails."""

import os

import pytest
from clusters import MODULE, carried_out, run

from subspace.study.config import Choice, Run
from subspace.study.launchers.inline import Inline
from subspace.study.launchers.ray import Ray
from subspace.study.store import StorageError, Store

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the module of the study, which is the present one meanwhile, and a Ray for all tests."""
    folder, before = tmp_path_factory.mktemp("ray"), os.getcwd()
    (folder / "fragile.py").write_text(MODULE)
    os.chdir(folder)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield folder
    ray.shutdown()
    os.chdir(before)


@pytest.fixture(scope="module")
def study(place):
    store = Store("results")
    return store, carried_out([run(), run("raises"), run("killed")], store, Ray(store.folder, {"num_gpus": 0}))


def test_every_run_comes_to_its_end_and_failures_are_tried_once_more(study):
    store, told = study
    assert dict(told.ended) == {run(): "finished", run("raises"): "failed", run("killed"): "failed"}
    assert len(told.ended) == 3
    assert store.read(run("raises"))["error"] == "LookupError: no such thing"
    assert store.read(run("killed"))["error"].startswith("the Ray task died: WorkerCrashedError: ")
    assert [store.read(each)["attempts"] for each in (run(), run("raises"), run("killed"))] == [1, 2, 2]
    assert len(told.said) == 2


def test_a_run_computes_what_it_computes_anywhere(study):
    store, told = study
    here = Store("here")
    Inline(here.folder).submit([run()])
    one, other = (folder.read(run())["metrics"]["epochs"] for folder in (store, here))
    assert [{**epoch, "seconds": 0} for epoch in one] == [{**epoch, "seconds": 0} for epoch in other]
    assert [epoch for each, epoch in told.epochs if each == run()] == [1, 2]


def test_a_store_that_cannot_be_written_stops_the_study(place):
    store = Store("unwritable")
    (store.directory(run()) / "state.pt").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"state\.pt must be writable, got: Is a directory"):
        carried_out([run()], store, Ray(store.folder, {}))
    assert store.read(run()) is None


def test_what_is_under_way_is_stopped_with_the_study(place):
    store = Store("stopped")
    with Ray(store.folder, {}) as launcher:
        (job,) = launcher.submit([Run(Choice("ordinary"), data=Choice("mnist5k"))])
        launcher.wait([job], 0.5)
    ray.wait([job.reference], timeout=10)
    assert job.done()
    assert store.read(job.run) is None


def test_a_ray_that_was_there_stays_and_an_option_that_it_does_not_have_is_named(place):
    with Ray(Store("unused").folder, {}):
        pass
    assert ray.is_initialized()
    with pytest.raises(
        ValueError, match=r"options of ray must be address, .*, got 'num_gpu'; did you mean 'num_gpus'\?"
    ):
        Ray(place, {"num_gpu": 1})
