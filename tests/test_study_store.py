"""Laws of the store: a result is there whole or not at all, and a damaged one is never taken for good, nor deleted."""

import json
import os

import pytest

from subspace.study.config import Run
from subspace.study.store import Store

RUN, OTHER = Run("dctps", 0.01, 0), Run("dctps", 0.01, 1)
RECORD = {
    "status": "finished",
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
        raise OSError("disk full")

    monkeypatch.setattr(os, step, crash)
    if step == "replace":
        monkeypatch.setattr("pathlib.Path.replace", crash)
    with pytest.raises(OSError, match="disk full"):
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
    "another schema": (edited(schema=99), "got schema 99 in place of 1"),
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
    aside = store.set_aside(RUN)
    assert (aside.name, aside.read_bytes()) == ("result.damaged-1.json", damaged)
    assert store.read(RUN) is None
    store.write(RUN, RECORD)
    path.write_bytes(b"again")
    assert store.set_aside(RUN).name == "result.damaged-2.json"
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
    with pytest.raises(OSError, match="file"):
        Store(tmp_path / "file" / "results")
