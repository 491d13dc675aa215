"""Laws of the store: a result is there whole or not at all, and a damaged one is never taken for good, nor deleted."""

import json
import os
import resource
import subprocess
import sys

import pytest

from subspace.study.entries.entry import Choice
from subspace.study.results.disk import StorageError
from subspace.study.results.store import NewerSchemaError, Store
from subspace.study.spec.study import Run

RUN, OTHER = Run(Choice("dctps"), density=0.01, seed=0), Run(Choice("dctps"), density=0.01, seed=1)
RECORD = {
    "status": "finished",
    "attempts": 1,
    "environment": {"torch": "x"},
    "metrics": {"test_accuracy": [0.1, 1 / 3]},
    "error": None,
    "traceback": None,
    "warnings": [],
}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results")


def files(store):
    return sorted(str(path.relative_to(store.folder)) for path in store.folder.rglob("*") if path.is_file())


def test_a_record_is_read_back_as_it_was_written_beside_its_configuration(store):
    store.write(RUN, RECORD)
    read = store.read(RUN)
    assert {name: read[name] for name in RECORD} == RECORD
    assert read["configuration"] == RUN.configuration()
    assert files(store) == [f"runs/{RUN.hash}/result.json"]
    assert store.read(OTHER) is None


def test_a_later_record_replaces_an_earlier_one(store):
    store.write(RUN, {**RECORD, "status": "failed", "metrics": None, "error": "oh"})
    store.write(RUN, RECORD)
    assert store.read(RUN)["status"] == "finished"
    assert len(files(store)) == 1


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_crash_while_writing_leaves_what_was_there(store, monkeypatch, step):
    store.write(RUN, RECORD)

    def crash(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, crash)
    with pytest.raises(StorageError, match=r"result\.json must be writable, got: No space left on device"):
        store.write(RUN, {**RECORD, "status": "failed"})
    assert store.read(RUN)["status"] == "finished"
    assert len(files(store)) == 1


def edited(**changes):
    def edit(text):
        return json.dumps({**json.loads(text), **changes}).encode()

    return edit


DAMAGE = {
    "empty": (lambda text: b"", "must be JSON"),
    "truncated": (lambda text: text[: len(text) // 2], "must be JSON"),
    "not text": (lambda text: b"\xff\xfe\x00" + text, "must be JSON"),
    "another value": (lambda text: b"[1, 2]", "got a list"),
    "an older schema": (edited(schema=1), "got schema 1 in place of 2"),
    "no schema": (edited(schema=None), "got schema None in place of 2"),
    "no checksum": (edited(sha256=None), "do not match their checksum"),
    "a changed figure": (lambda text: text.replace(b"0.1,", b"0.9,"), "do not match their checksum"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_and_the_file_set_aside_as_it_is(store, kind):
    damage, message = DAMAGE[kind]
    store.write(RUN, RECORD)
    path = store.path(RUN)
    path.write_bytes(damaged := damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        store.read(RUN)
    assert str(path) in str(error.value)
    aside = store.set_aside(path)
    assert (aside.name, aside.read_bytes()) == ("damaged-1-result.json", damaged)
    assert store.read(RUN) is None
    store.write(RUN, RECORD)
    path.write_bytes(b"again")
    assert store.set_aside(path).name == "damaged-2-result.json"
    assert aside.read_bytes() == damaged


def test_a_result_in_the_place_of_another_run_is_damage(store):
    store.write(RUN, RECORD)
    store.path(OTHER).parent.mkdir(parents=True)
    store.path(RUN).rename(store.path(OTHER))
    with pytest.raises(ValueError, match="another configuration"):
        store.read(OTHER)


def test_the_layout_of_the_json_is_no_damage(store):
    store.write(RUN, RECORD)
    path = store.path(RUN)
    path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=True, indent=7))
    assert store.read(RUN)["metrics"] == RECORD["metrics"]


def test_figures_that_json_does_not_have_are_refused(store):
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.write(RUN, {**RECORD, "metrics": {"test_accuracy": [float("nan")]}})
    assert files(store) == []


def test_a_folder_that_cannot_be_written_is_an_error_at_once(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/results must be writable, got: "):
        Store(tmp_path / "file" / "results").require_writable()


def test_a_result_of_a_newer_version_is_left_alone_and_named(store):
    store.write(RUN, {**RECORD, "environment": {"subspace": "9.9"}})
    path = store.path(RUN)
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 3, "unheard": "of"}))
    before = path.read_bytes()
    with pytest.raises(
        NewerSchemaError, match=r"result\.json must be of schema 2 or older, got 3, which version 9\.9 wrote: update"
    ):
        store.read(RUN)
    assert path.read_bytes() == before


def test_a_state_is_read_back_until_it_is_cleared_and_damage_of_it_is_named(store):
    assert store.read_state(RUN) is None
    store.write_state(RUN, b"first", [{"epoch": 1}])
    store.write_state(RUN, b"second", [{"epoch": 1}, {"epoch": 2}])
    assert store.read_state(RUN) == b"second"
    assert store.progress(RUN) == [{"epoch": 1}, {"epoch": 2}]
    path = store.directory(RUN) / "state.pt"
    whole = path.read_bytes()
    for damaged in (b"", whole[:-1], whole[:40], whole.replace(b"second", b"secong"), b"x" * 99):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"state\.pt must be an intact state of its run"):
            store.read_state(RUN)
    path.write_bytes(whole)
    (store.directory(RUN) / ".state.pt-123.tmp").write_bytes(b"of a writer that was killed")
    store.clear(RUN)
    assert files(store) == [f"runs/{RUN.hash}/epochs.json", f"runs/{RUN.hash}/state.pt"]
    store.clear(RUN, state=True)
    assert files(store) == [f"runs/{RUN.hash}/epochs.json"]


@pytest.mark.slow
def test_a_run_is_held_by_one_at_a_time_and_let_go_of_by_the_dead(store):
    holding = """
import sys, time
from subspace.study.entries.entry import Choice
from subspace.study.spec.study import Run
from subspace.study.results.store import Store
with Store(sys.argv[1]).held(Run(Choice("dctps"), density=0.01, seed=0)) as mine:
    print(mine, flush=True)
    time.sleep(60)
"""
    with store.held(RUN) as mine, store.held(OTHER) as too:
        assert mine and too  # noqa: PT018
        with store.held(RUN) as again:
            assert not again
    other = subprocess.Popen([sys.executable, "-c", holding, store.folder], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "True\n"
    with store.held(RUN) as mine:
        assert not mine
    other.kill()
    other.wait()
    with store.held(RUN) as mine:
        assert mine


def test_a_disk_that_is_full_is_named_and_leaves_what_was_there(store):
    store.write(RUN, RECORD)
    store.write_state(OTHER, b"before", [])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # a file of the system's own that takes no more
    try:
        with pytest.raises(StorageError, match=r"result\.json must be writable, got: File too large"):
            store.write(RUN, {**RECORD, "status": "failed"})
        with pytest.raises(StorageError, match=r"state\.pt must be writable, got: File too large"):
            store.write_state(OTHER, b"after" * 100, [])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert store.read(RUN)["status"] == "finished"
    assert store.read_state(OTHER) == b"before"
    assert not list(store.folder.rglob("*.tmp"))
