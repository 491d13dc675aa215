"""Laws of resuming: a state that does not fit its run is set aside, and the run is trained from its start."""

import pytest
import torch

from subspace.study.entries.entry import Choice
from subspace.study.execution.callbacks import Callback
from subspace.study.execution.execute import RunStateStore, execute
from subspace.study.execution.runner import unfinished
from subspace.study.results.store import Store
from subspace.study.spec.study import Run, Training
from subspace.study.training.run import train
from subspace.study.training.state import StateStore, pack, unpack
from tests.support.cases import rest_slow


class Killed(BaseException):
    """In place of a crash."""


class Killing(StateStore):
    """Kills the run when it has stored its first state."""

    def __init__(self, states):
        self.states = states

    def save(self, state):
        self.states.save(state)
        raise Killed


def of(name, processes=1):
    density = None if name == "ordinary" else 0.3
    options, setting = {"rounds": 1} if name == "imp" else {}, Training(3, 20, processes=processes)
    return Run(Choice(name, options), Choice("tiny:model"), Choice("tiny:data"), density, train=setting)


def figures(metrics):
    return [{**epoch, "seconds": 0} for epoch in metrics["epochs"]]


CHANGES = {
    "another width": lambda state: {**state, "model": state["model"][:-7]},
    "no parts": lambda state: {name: value for name, value in state.items() if name != "parts"},
    "another optimizer": lambda state: {**state, "parts": {"optimizer": {"state": {}, "param_groups": []}}},
    "a part more": lambda state: {**state, "parts": {**state["parts"], "mover": {"steps": 3}}},
    "foreign figures": lambda state: {**state, "metrics": {"a": 1}},
    "no figures": lambda state: {**state, "done": None},
    "a list": lambda state: [state],
    "numbers": lambda state: {**state, "epochs": torch.ones(3)},
}


@pytest.mark.parametrize("change", rest_slow(CHANGES, ["another width", "a list"]))
def test_a_state_that_does_not_fit_is_set_aside_and_the_run_begins_anew(change, tiny_project, tmp_path):
    store, run = Store(tmp_path), of("dctps")
    with pytest.raises(Killed):
        train(run, Killing(RunStateStore(store, run)))
    store.write_state(run, pack(CHANGES[change](unpack(store.read_state(run)))), [])
    assert execute(run, tmp_path) == "ended"
    record = store.read(run)
    assert record["error"] is None
    (warning,) = [text for text in record["warnings"] if "set aside" in text]
    assert "must fit its run, got" in warning
    assert warning.endswith("set aside as damaged-1-state.pt, and the run begins anew")
    assert (store.directory(run) / "damaged-1-state.pt").exists()
    assert figures(record["metrics"]) == figures(train(run))


@pytest.mark.parametrize("name", ["ordinary", "dctps", "imp"])
def test_a_run_whose_code_has_changed_begins_anew(name, tiny_project, tmp_path, monkeypatch):
    import tiny

    store, run, model = Store(tmp_path), of(name), tiny.model
    monkeypatch.setattr(tiny, "model", lambda key, num_classes: torch.nn.Linear(6, num_classes))
    with pytest.raises(Killed):
        train(run, Killing(RunStateStore(store, run)))
    monkeypatch.setattr(tiny, "model", model)
    assert execute(run, tmp_path) == "ended"
    assert store.read(run)["error"] is None
    assert figures(store.read(run)["metrics"]) == figures(train(run))


@pytest.mark.torchrun
@pytest.mark.usefixtures("quick")
def test_a_state_that_does_not_fit_several_processes_is_set_aside_too(tiny_project, tmp_path):
    store, run = Store(tmp_path), of("dctps", processes=2)
    store.write_state(run, pack({"metrics": {"a": 1}, "done": []}), [])
    execute(run, tmp_path)
    record = store.read(run)
    assert record["error"] is None, record["traceback"]
    assert any("must fit its run, got TypeError" in text and "set aside" in text for text in record["warnings"])


def test_want_of_memory_is_no_reason_to_throw_a_state_away(tiny_project, tmp_path, monkeypatch):
    store, run = Store(tmp_path), of("dctps")
    with pytest.raises(Killed):
        train(run, Killing(RunStateStore(store, run)))

    def load(*_):
        raise MemoryError("no room")

    monkeypatch.setattr("subspace.load", load)
    execute(run, tmp_path)
    assert store.read(run)["error"] == "MemoryError: no room"
    assert store.read_state(run) is not None


def test_a_run_that_has_finished_is_not_trained_again_and_one_that_failed_is(tmp_path):
    run, trained = of("dctps"), []

    def task(run, states):
        trained.append(run)
        if len(trained) < 3:
            raise RuntimeError("no luck")
        return {"epochs": []}

    for _ in range(5):
        assert execute(run, tmp_path, task) == "ended"
    assert len(trained) == 3
    assert Store(tmp_path).read(run)["attempts"] == 3


@pytest.mark.parametrize("look", [execute, lambda run, folder: unfinished([run], Store(folder), Callback())])
def test_a_finished_run_keeps_no_state_though_its_process_died_before_removing_it(look, tmp_path, monkeypatch):
    run, store = of("dctps"), Store(tmp_path)

    def task(run, states):
        states.save({"done": []})
        return {"epochs": []}

    def killed(self, run, record, write=Store.write):
        write(self, run, record)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", killed)
        with pytest.raises(Killed):
            execute(run, tmp_path, task)
    assert store.read(run)["status"] == "finished"
    assert store.read_state(run) is not None
    look(run, tmp_path)
    assert store.read_state(run) is None
