"""Presets: every one is a study that can run, those in full are Price and Tanner's protocol, and names find them."""

import re
from pathlib import Path

import pytest
import tomlkit

from subspace.study.execution.launchers.inline import Inline
from subspace.study.execution.plan import Plan
from subspace.study.spec import files
from subspace.study.spec.presets import FOLDER, preset, presets
from tests.support.cases import rest_slow

NAMES = list(presets())
FULL = [name for name in NAMES if name.endswith("-full")]
FASHION = [name for name in NAMES if name.startswith("fashion/")]
SMALL = [name for name in NAMES if name not in [*FULL, *FASHION]]
OFFLINE = {"mnist5k", "digits", "mnist1d", "stdlib"}
KINDS = (
    "width-conv",
    "width-attention",
    "doping",
    "cheap-offset-conv",
    "training-conv",
    "burn-in",
    "burn-in-norm",
    "bytes",
    "bytes-dense",
)
ONE_KIND = [f"questions/{name}" for name in KINDS]
SIX = [0.01, 0.005, 0.001, 0.0005, 0.0002, 0.0001]


def runs(name):
    return files.study(files.read(name)).runs()


@pytest.mark.parametrize("name", rest_slow(NAMES, list(NAMES)[::2]))
def test_every_preset_is_a_study_that_can_run_and_says_what_it_takes(name, tmp_path):
    study = files.study(files.read(name))
    Plan.of(study, tmp_path, Inline(tmp_path))
    assert study.name == name.replace("/", "-")
    assert len(study.runs()) == len({run.hash for run in study.runs()}) > 0
    labels = {(run.label, str(run.model), str(run.data), run.size, run.seed) for run in study.runs()}
    assert len(labels) == len(study.runs())  # no two lines of a figure have one name
    says = presets()[name]
    assert not says.startswith("#")
    assert says.endswith("for GPUs" if name in FULL else "on 2 cores")
    assert preset(name) == FOLDER / f"{name}.toml"


@pytest.mark.parametrize("name", SMALL)
def test_small_presets_need_no_download_and_have_three_seeds_and_networks_with_and_without_norms(name):
    """Those of one kind of network, in several widths, are the exception."""
    found = runs(name)
    assert {run.data.name for run in found} <= OFFLINE
    assert len({run.seed for run in found}) >= 3
    if name.startswith("questions/") and name not in ONE_KIND:
        normed = {run.model.name == "resnet20" or run.model.options.get("norm", False) for run in found}
        assert normed == {True, False}


def test_on_fashion_every_question_is_asked_with_norms_and_without_and_of_a_transformer():
    assert {name.removeprefix("fashion/") for name in FASHION} == {
        *("accuracy", "frozen", "norms", "offset", "learning-rate", "budget")
    }
    for name in FASHION:
        found = runs(name)
        assert {run.data.name for run in found} == {"fashion_mnist"}
        assert {run.data.options["train"] for run in found} == {12_000}
        assert {run.seed for run in found} == {0, 1, 2}
        assert {run.model.name for run in found} >= {"resnet20"} | ({"lenet5"} if name != "fashion/norms" else set())
        assert {0.01, 0.001, 0.0001} <= {run.density for run in found if run.density}
    assert "vit_tiny" in {run.model.name for name in FASHION for run in runs(name)}


@pytest.mark.parametrize("name", [name for name in FULL if "random-subspace" not in name])
def test_the_full_scale_is_the_talks_protocol(name):
    found = runs(name)
    train = found[0].train
    assert (train.epochs, train.batch, train.learning_rate, train.scaling) == (200, 128, 1e-3, "none")
    assert (train.optimizer, train.schedule) == ({"name": "Adam", "weight_decay": 5e-4}, "")
    assert train.validation == 0.1
    assert {run.data.name for run in found} <= {"cifar10", "cifar100"}
    assert {run.seed for run in found} == {0, 1, 2}
    assert all(run.method.options.get("delta_t", 100) == 100 for run in found)


@pytest.mark.parametrize(
    ("network", "where"), [("resnet50", "cifar100"), ("mobilenet_v2", "cifar10"), ("fixup_resnet110", "cifar10")]
)
def test_the_talks_figure_has_seven_methods_at_six_densities(network, where):
    found = runs(f"talk/accuracy-{network}-full")
    assert {(run.model.name, run.data.name) for run in found} == {(network, where)}
    assert sorted({run.density for run in found if run.density}, reverse=True) == SIX
    assert {run.method.name for run in found} == {
        *("ordinary", "random_pruning_uniform", "random_pruning_epl", "force", "synflow", "rigl", "dctps", "dctps_rigl")
    }
    small = runs("talk/accuracy")
    assert {run.method.name for run in small} == {run.method.name for run in found}
    assert sorted({run.density for run in small if run.density}, reverse=True) == SIX


@pytest.mark.parametrize(("name", "pairs"), [("talk/faithful", 6), ("talk/faithful-full", 9)])
def test_the_faithful_presets_have_either_rule_of_every_method(name, pairs):
    methods = [run.method for run in runs(name) if "rule" in run.method.options]
    found = {(method.name, method.options.get("budget"), method.options["rule"]) for method in methods}
    theirs, ours = ({one[:2] for one in found if one[2] == rule} for rule in ("authors", "exact"))
    assert theirs == ours
    assert len(theirs) == pairs


def test_every_experiment_of_the_talk_is_there_at_either_scale():
    wanted = {
        "accuracy",
        "fixed-alpha",
        "epf",
        "random-subspace",
        "trainability",
        "jacobian",
        "shuffle",
        "faithful",
        "imp",
    }
    assert {f"talk/{name}" for name in wanted} <= {*SMALL}
    assert {f"talk/{name}-full" for name in wanted - {"accuracy"}} <= {*FULL}


@pytest.mark.parametrize(
    ("name", "nearest"), [("talk/acuracy", "; did you mean 'talk/accuracy'?"), ("nothing-like-it", "")]
)
def test_an_unknown_name_is_refused_with_the_nearest(name, nearest):
    told = f"a study must be a .toml or .json file or a preset, such as {NAMES[0]}, got {name!r}{nearest}"
    with pytest.raises(ValueError, match=f"^{re.escape(told)}$"):
        files.read(name)


def test_a_folder_or_a_file_without_an_ending_is_no_preset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("talk/accuracy").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"a study's file must end in .toml or .json, got 'talk/accuracy'"):
        files.read("talk/accuracy")


def test_presets_are_in_the_package():
    project = tomlkit.parse((FOLDER.parents[3] / "pyproject.toml").read_text())
    assert "study/spec/presets/*/*.toml" in project["tool"]["setuptools"]["package-data"]["subspace"]
