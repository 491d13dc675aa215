"""Runs that are given the size of their file: all fit, and hardly more would."""

from __future__ import annotations

import copy
import io
from dataclasses import replace

import pytest
import torch

import subspace
from subspace import Key
from subspace.study import data, models
from subspace.study.entries.entry import Choice
from subspace.study.methods import METHODS
from subspace.study.methods.setting import Setting
from subspace.study.spec.study import Run, Study, Training
from subspace.study.training import run as running
from subspace.study.training.costs import file_bytes
from subspace.study.training.fitting import ROOM, filled, largest_dim, moved_places
from subspace.study.training.run import train
from tests.support.cases import rest_slow

DATA = Choice("mnist5k", {"train": 120, "test": 60})
SIZED = [n for n, m in METHODS.items() if m.has_density and not m.prunes and "rounds" not in m.options]
QUICK = {"synflow": {"steps": 3}, "iterative_snip": {"steps": 3}, "force": {"steps": 3}}
QUICK["random_subspace"] = {"embedding": "hashed"}


def run_of(name: str, size: int, bits: int, **options) -> Run:
    options = QUICK.get(name, {}) | options
    training = Training(epochs=2, batch=20, theta_bits=bits)
    return Run(Choice(name, options), data=DATA, bytes=size, train=training)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [0, 5])
@pytest.mark.parametrize("name", SIZED)
def test_the_file_of_a_run_has_at_most_its_bytes(name, bits):
    metrics = train(run_of(name, 6_000, bits))
    assert 0.6 * 6_000 < metrics["file_bytes"] <= 6_000


def test_to_fit_a_burn_in_counts_and_leaves_nothing():
    given = {"embedding": "hashed", "offset": "initial", "burn_in": 1}
    run = run_of("random_subspace", 6_000, 0, **given)
    fitted = train(run)
    plain = train(replace(run, bytes=None, dim=fitted["dim"]))
    for figure in ("samples", "flops_total", "flops_init", "dim"):
        assert fitted[figure] == plain[figure], figure
    assert not torch.utils._python_dispatch._get_current_dispatch_mode_stack()  # as a counter of FLOPs would be


FITTED = ["dctps", "freezenet", "random_pruning_uniform", "random_subspace", "set"]


@pytest.mark.parametrize("bits", [0, 5])
@pytest.mark.parametrize("name", rest_slow(FITTED, ["dctps"]))
def test_one_part_in_a_hundred_more_would_not_fit(name, bits):
    run, method = run_of(name, 6_000, bits), METHODS[name]
    dense = models.build(run.model, data.load(DATA), Key(0))
    before = copy.deepcopy(dense.state_dict())
    setting = Setting({}, 1.0, 0, run.method.options, data.load(DATA).train, 12, lambda model: None)
    dim = largest_dim(dense, setting, method, 6_000, bits)
    assert all(map(torch.equal, before.values(), dense.state_dict().values()))
    sizes = []
    for count in (dim, dim + max(2, dim // 100)):
        size = {"dim": count}
        model = method.apply(copy.deepcopy(dense), replace(setting, size=size, density=count / 61_210))
        sizes.append(file_bytes(filled(model), bits) + moved_places(model) * (method.mover is not None))
    assert sizes[0] <= 6_000 < sizes[1] + ROOM


def test_a_budget_for_everything_trains_everything():
    run = run_of("random_pruning_uniform", 10_000_000, 0)
    assert train(run)["dim"] == 61_210


def test_too_few_bytes_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match=r"bytes must be at least [\d,]+ for DCTpS, EPL, got 100"):
        train(run_of("dctps", 100, 6))


def test_a_run_is_tested_as_its_file_gives_it_back(monkeypatch):
    """The accuracies that a run reports are those of the model that is loaded from its file."""
    kept = []
    complete = running.complete
    monkeypatch.setattr(running, "complete", lambda loop, model: kept.append(model) or complete(loop, model))
    run = run_of("dctps", 4_000, 2)
    metrics = train(run)
    whole = data.load(DATA)
    subspace.save(kept[0], file := io.BytesIO(), bits=2)
    again = subspace.load(models.build(run.model, whole, Key(0).fold("init")), io.BytesIO(file.getvalue())).eval()
    inputs, labels = whole.test.batch(torch.arange(len(whole.test)))
    right = float((again(inputs).argmax(1) == labels).double().mean())
    assert metrics["epochs"][-1]["test_accuracy"] == pytest.approx(right)
    assert metrics["file_bytes"] == pytest.approx(len(file.getvalue()), abs=20)


@pytest.mark.parametrize(
    "more, why",
    [
        ({"bytes": 9, "dim": 9}, "exactly one of density, dim, bytes must be given for dctps"),
        ({}, "exactly one of density, dim, bytes must be given for dctps, got none"),
        ({"bytes": 0}, "bytes must be an integer of at least 1"),
        ({"bytes": 9.5}, "bytes must be an integer of at least 1"),
    ],
)
def test_sizes_that_a_run_cannot_have(more, why):
    with pytest.raises(ValueError, match=why):
        Run(Choice("dctps"), **more)


@pytest.mark.parametrize("name", ["ordinary", "imp", "gradual"])
def test_methods_without_a_size_before_training_take_no_bytes(name):
    with pytest.raises(ValueError, match=f"no size must be given for {name}|bytes must be None for {name}"):
        Run(Choice(name), bytes=1000)


@pytest.mark.parametrize("bits", [1, 9, -1, 4.0, True, "8"])
def test_bits_that_training_does_not_take(bits):
    with pytest.raises(ValueError, match="theta_bits must be 0 or an integer from 2 to 8"):
        Training(theta_bits=bits)


def test_bytes_are_an_axis_and_old_runs_keep_their_names():
    study = Study(methods=("ordinary", "dctps"), bytes=(1000, 2000), seeds=1, train={"theta_bits": 6})
    runs = study.runs()
    assert [(run.method.name, run.bytes) for run in runs] == [("ordinary", None), ("dctps", 1000), ("dctps", 2000)]
    assert all(Run.parse(run.configuration()) == run for run in runs)
    assert str(runs[1]) == "DCTpS, EPL, 1,000 bytes, seed 0"
    plain = Run(Choice("dctps"), density=0.1).configuration()
    assert "bytes" not in plain
    assert "theta_bits" not in plain["train"]
    with pytest.raises(ValueError, match="one of densities, dims, bytes must be given, got"):
        Study(bytes=1000, dims=(3,))
