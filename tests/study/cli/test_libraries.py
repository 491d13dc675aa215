"""Models of other libraries from the front door, `subspace run`: with the real ones where they can be imported."""

import importlib
import sys
import warnings
from types import ModuleType, SimpleNamespace

import pytest
from torch import nn
from typer.testing import CliRunner

from subspace.study import Callback, Study, run
from subspace.study.cli.app import app

DATA = "data={name = 'mnist5k', train = 40, test = 20}"
VIT = "{name = 'transformers:vit', hidden_size = 16, num_hidden_layers = 1, num_attention_heads = 2, patch_size = 7}"
SMALL = {"data": {"name": "mnist5k", "train": 40, "test": 20}, "seeds": 1, "train": {"epochs": 1, "batch": 20}}


def invoke(*words):
    return CliRunner().invoke(app, list(map(str, words)), env={"COLUMNS": "200"})


def importable(library):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(library)
    except Exception:  # one for another torch raises a RuntimeError
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("launch", [["--launcher", "inline"], ["--launch", "workers=1"]])
def test_a_model_of_transformers_is_trained(launch, tmp_path):
    pytest.importorskip("transformers")
    settings = ["methods=ordinary,dctps", "densities=0.1", "seeds=1", "train.epochs=1", "train.batch=20"]
    done = invoke("run", *settings, DATA, f"models=[{VIT}]", "--out", tmp_path, *launch)
    assert done.exit_code == 0, done.output
    assert "transformers:vit (hidden_size=16" in done.output


@pytest.mark.parametrize("library", ["timm", "torchvision", "transformers"])
def test_a_model_by_its_librarys_name_is_checked_before_anything_runs(library, tmp_path):
    known = {"timm": "resnet18", "torchvision": "resnet18", "transformers": "vit"}[library]
    good = invoke("plan", f"models={library}:{known}", "seeds=1", "--out", tmp_path)
    bad = invoke("plan", f"models={library}:{known}x", "--out", tmp_path)
    if importable(library):
        assert good.exit_code == 0, good.output
        assert f"must be one that {library} has" in bad.output
    else:
        for said in (good, bad):
            assert said.exit_code == 2
            assert f"{library} must be " in said.output
            assert "Traceback" not in said.output
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def timm(monkeypatch):
    """A stand-in with the functions of timm that are called."""
    library = ModuleType("timm")
    library.is_model = lambda name: name == "tiny"
    library.list_models = lambda: ["tiny"]
    library.get_pretrained_cfg = lambda name: SimpleNamespace(fixed_input_size=False)
    library.create_model = lambda name, pretrained, num_classes, in_chans: nn.Sequential(
        nn.Conv2d(in_chans, 4, 7, 7), nn.Flatten(), nn.Linear(64, num_classes)
    )
    monkeypatch.setitem(sys.modules, "timm", library)


@pytest.mark.slow
def test_a_model_of_a_library_is_trained(timm, tmp_path):
    table = run(Study(models="timm:tiny", methods="dctps", densities=0.1, **SMALL), tmp_path, "inline")
    assert table["model"].tolist() == ["timm:tiny"]
    assert table["status"].tolist() == ["finished"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            RuntimeError("operator torchvision::nms does not exist"),
            "can be imported beside this torch, got RuntimeError",
        ),
        (ModuleNotFoundError("No module named 'torchvision'", name="torchvision"), "must be complete for its models"),
        (ModuleNotFoundError("No module named 'timm'", name="timm"), "must be installed for its models, got none: pip"),
    ],
)
def test_a_library_that_cannot_be_imported_is_one_sentence(error, message, monkeypatch, tmp_path):
    def refuse(name):
        raise error

    monkeypatch.setattr("subspace.study.models.libraries.import_module", refuse)
    said = invoke("run", "models=timm:resnet18", "--out", tmp_path)
    assert said.exit_code == 2
    assert message in " ".join(said.output.split())


def failing():
    raise LookupError("no such thing")


@pytest.mark.slow
def test_failures_are_said_to_those_who_call_it(tmp_path):
    with pytest.warns(UserWarning, match=r"1 of 1 runs failed, the first, ordinary .*: LookupError: no such thing"):
        run(Study(models=failing, methods="ordinary", **SMALL), tmp_path, "inline")


class ZMQInteractiveShell:
    """What a notebook has in place of a terminal."""


@pytest.mark.slow
def test_a_notebook_shows_the_progress(monkeypatch, capsys, timm, tmp_path):
    study = Study(models="timm:tiny", methods="ordinary", **SMALL)
    monkeypatch.setattr("builtins.get_ipython", ZMQInteractiveShell, raising=False)
    monkeypatch.setattr("subspace.study.execution.live.find_spec", lambda name: None)
    run(study, tmp_path, "inline")
    assert "1 of 1 runs to train" in (shown := capsys.readouterr().out)
    assert "1/1  ordinary (dense), seed 0" in shown
    run(study, tmp_path / "again", "inline", callbacks=[Callback()])
    assert capsys.readouterr().out == ""
