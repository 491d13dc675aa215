"""The cost model's cache: never trusted, never needed, and of no consequence but time."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import torch

from subspace.products import ROUTES
from subspace.products.choice import calibration
from subspace.products.choice.router import predict
from subspace.products.problem import Problem

LINEAR = (ROUTES, "linear", torch.float32, "cpu")
SIZES = calibration._sizes(*LINEAR)  # of what is measured


QUIET = calibration.QUIET


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """A cache of one's own, and the families that are measured, in next to no time."""
    families = []

    def measure(routes, family, dtype, device, until=None):
        families.append(family)
        sizes = calibration._sizes(routes, family, dtype, device)
        return {name: [1e-9 * (1 + i) for i in range(size)] for name, size in sizes.items()}

    monkeypatch.setenv("SUBSPACE_COSTS", str(tmp_path / "costs.json"))
    monkeypatch.setattr(calibration, "measure", measure)
    monkeypatch.setattr(calibration, "QUIET", 0.0)  # whoever else computes
    monkeypatch.setattr(calibration, "_SECONDS", calibration._Allowance(1000.0))
    calibration._constants.cache_clear()
    yield families
    calibration._constants.cache_clear()


def constants() -> dict[str, list[float]]:
    calibration._constants.cache_clear()
    return dict(calibration.constants(*LINEAR))


def name() -> str:
    return calibration.machine("cpu", torch.get_num_threads(), torch.float32)


DAMAGE = {
    "nothing": b"",
    "no json": b"not json",
    "half": b'{"cpu',
    "no text": b"\xff\xfe\x00",
    "null": b"null",
    "a list": b"[]",
    "a number": b"3",
    "a string": b'"x"',
    "deep": b"[" * 100_000,
    "a machine that is a number": lambda: {name(): 5},
    "a machine that is a list": lambda: {name(): []},
    "a family that is null": lambda: {name(): {"linear": None}},
    "a family without routes": lambda: {name(): {"linear": {}}},
    "a route too few": lambda: {name(): {"linear": {"dense": [1e-9] * SIZES["dense"]}}},
    "routes that are numbers": lambda: {name(): {"linear": dict.fromkeys(SIZES, 1.0)}},
    "too short": lambda: {name(): {"linear": {route: [1e-9] * 2 for route in SIZES}}},
    "too long": lambda: {name(): {"linear": {route: [1e-9] * 9 for route in SIZES}}},
    "strings": lambda: {name(): {"linear": {route: ["1"] * n for route, n in SIZES.items()}}},
    "not a number": lambda: {name(): {"linear": {route: [float("nan")] * n for route, n in SIZES.items()}}},
    "infinite": lambda: {name(): {"linear": {route: [float("inf")] * n for route, n in SIZES.items()}}},
    "negative": lambda: {name(): {"linear": {route: [-1e-9] * n for route, n in SIZES.items()}}},
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_measured_again_and_mended(damage, measured, tmp_path):
    wanted = constants()
    content = DAMAGE[damage]
    content = content if isinstance(content, bytes) else json.dumps(content()).encode()
    (tmp_path / "costs.json").write_bytes(content)
    assert constants() == wanted
    assert measured == ["linear"] * 2
    assert constants() == wanted
    assert measured == ["linear"] * 2, "and it is whole again"


def test_what_else_is_in_a_cache_stays(measured, tmp_path):
    constants()
    table = json.loads((tmp_path / "costs.json").read_text())
    other = {"another machine": {"linear": {"dense": [1.0]}}}
    (tmp_path / "costs.json").write_text(json.dumps({**other, name(): {"conv": 3}}))
    constants()
    assert json.loads((tmp_path / "costs.json").read_text()) == {**other, **table}


@pytest.mark.parametrize("what", ["VERSION", "COUNTS"])
def test_another_version_of_the_package_measures_for_itself(what, measured, monkeypatch):
    constants()
    monkeypatch.setattr(calibration, what, 99)
    constants()
    constants()
    assert measured == ["linear"] * 2


@pytest.mark.parametrize("where", ["a file/costs.json", "folder", "no\0name", "x" * 300])
def test_where_it_cannot_be_kept_it_is_measured_every_time(where, measured, tmp_path, monkeypatch):
    (tmp_path / "a file").write_text("")
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(calibration, "_path", lambda: tmp_path / where)
    assert constants() == constants()
    assert measured == ["linear"] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a file", "folder"]


def test_what_is_measured_beside_other_programs_is_not_used(measured, tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "QUIET", QUIET)
    clock = iter(range(100))
    monkeypatch.setattr(calibration.time, "perf_counter", lambda: 2.0 * next(clock))
    monkeypatch.setattr(calibration.time, "thread_time", lambda: 0.0)
    assert constants() == calibration.typical("linear", torch.float32, "cpu")
    assert not (tmp_path / "costs.json").exists()
    monkeypatch.setattr(calibration.time, "thread_time", calibration.time.perf_counter)
    assert constants() != calibration.typical("linear", torch.float32, "cpu")
    assert measured == ["linear"] * 2


def test_a_full_disk_leaves_no_litter(measured, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    constants()
    assert list(tmp_path.iterdir()) == []


def test_a_user_without_a_home_needs_none(measured, monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")  # as pathlib does for an unknown user id

    monkeypatch.delenv("SUBSPACE_COSTS")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", home)
    assert constants() == constants()
    assert measured == ["linear"] * 2


def test_typical_constants_are_those_that_ship_whatever_is_measured(measured, monkeypatch):
    monkeypatch.setenv("SUBSPACE_COSTS", "typical")
    shipped = json.loads(calibration.TYPICAL.read_text())
    assert constants() == shipped["float32"]["linear"]
    assert measured == []
    for name, families in shipped.items():
        device, _, dtype = name.rpartition(" ")
        assert families.keys() == set(calibration.FAMILIES)
        for family, found in families.items():
            assert calibration._are_constants([each for route in found.values() for each in route]), family
            sizes = calibration._sizes(ROUTES, family, getattr(torch, dtype), device or "cpu")
            assert {route: len(each) for route, each in found.items() if route in sizes} == sizes, family
    for dtype in DTYPES:
        assert calibration.typical("linear", dtype, "cuda").keys() >= {"dense", "triton"}


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def test_a_process_measures_for_no_longer_than_a_second_whatever_it_computes(monkeypatch, tmp_path):
    """With a clock of its own, which a machine of a tenth of the speed would show."""
    clock = [0.0]

    def pass_by(routes, problem, repeats=calibration.REPEATS, until=math.inf):
        known = calibration.typical(problem.family, problem.dtype, "cpu")
        seconds = {route.name: 10 * predict(problem, route, known) for route in routes}
        for each in [*seconds.values()] * (1 + repeats):
            if clock[0] > until:
                raise TimeoutError
            clock[0] += each
        return seconds

    monkeypatch.setenv("SUBSPACE_COSTS", str(tmp_path / "costs.json"))
    monkeypatch.setattr(calibration.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(calibration.time, "thread_time", lambda: clock[0])
    monkeypatch.setattr(calibration, "time_routes", pass_by)
    monkeypatch.setattr(calibration, "_SECONDS", calibration._Allowance(calibration.SECONDS))
    calibration._constants.cache_clear()
    try:
        for dtype in DTYPES:
            for family in calibration.FAMILIES:
                found = calibration.constants(ROUTES, family, dtype, "cpu")
                assert found.keys() >= {"dense", "remat"}
        assert 0 < clock[0] <= 1
    finally:
        calibration._constants.cache_clear()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_pretrained_weight_of_few_trained_entries_is_multiplied_apart(dtype, monkeypatch):
    monkeypatch.setenv("SUBSPACE_COSTS", "typical")
    calibration._constants.cache_clear()
    layer = Problem((768, 768), 590, "given", (512, 768), dtype, "cpu")
    known = calibration.constants(ROUTES, layer.family, dtype, "cpu")
    times = {route.name: predict(layer, route, known) for route in ROUTES if route.supports(layer)}
    assert times["apart"] < times["dense"]
    assert times["apart"] < 1.5 * min(times.values())
    full = layer._replace(k=590_000)
    times = {route.name: predict(full, route, known) for route in ROUTES if route.supports(full)}
    slow = dtype == torch.float16  # of which a CPU's matrix products are slower than a full S's
    assert slow or times["apart"] > min(times.values())
    calibration._constants.cache_clear()
