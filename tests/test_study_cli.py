"""The command as a user has it: a small study from end to end, Ctrl-C, and what it says to bad values."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

import subspace
from subspace.study.app import app
from subspace.study.cli import main
from subspace.study.methods import METHODS

COMMAND = [sys.executable, "-m", "subspace.study.cli", "study"]
SMALL = ["--methods", "ordinary,dctps", "--densities", "0.01", "--seeds", "1", "--epochs", "1", "--workers", "1"]


def test_a_study_ends_with_table_files_and_picture_and_is_not_run_twice(tmp_path):
    options = [*SMALL, "--out", str(tmp_path / "out")]
    first = CliRunner().invoke(app, ["study", *options])
    assert (first.exit_code, first.stderr) == (0, "")
    assert "\x1b" not in first.stdout
    assert first.stdout.startswith("2 runs, 0 of them finished already")
    records = [json.loads(path.read_text()) for path in (tmp_path / "out/runs").glob("*/result.json")]
    assert sorted(record["configuration"]["method"] for record in records) == ["dctps", "ordinary"]
    table = pd.read_csv(tmp_path / "out/table.csv")
    for record in records:
        accuracy = record["metrics"]["test_accuracy"][-1]
        assert table.set_index("method")["mean"][record["configuration"]["method"]] == accuracy
        assert f" {100 * accuracy:.1f} " in first.stdout
        assert record["environment"]["threads"] == 1
    assert len(pd.read_csv(tmp_path / "out/runs.csv")) == 2
    assert "Accuracy against dense, FLOPs and stored bytes" in first.stdout
    assert (tmp_path / "out/accuracy.png").stat().st_size > 10_000

    second = CliRunner().invoke(app, ["study", *options])
    assert second.exit_code == 0
    assert second.stdout.startswith("2 runs, 2 of them finished already")
    shown = first.stdout[first.stdout.index("Test accuracy") :]
    assert second.stdout.endswith(shown)


@pytest.mark.parametrize(
    ("words", "methods"),
    [
        ("all", list(METHODS)),
        ("rigl, all", ["rigl", *(name for name in METHODS if name != "rigl")]),
        ("imp,snip", ["imp", "snip"]),
        (None, ["ordinary", "random_pruning_uniform", "random_pruning_epl", "dctps", "freezenet", "random_subspace"]),
    ],
)
def test_methods_are_those_named_all_of_them_or_the_basic_six(words, methods, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("subspace.study.app.complete", lambda runs, *_: asked.extend(runs))
    monkeypatch.setattr("subspace.study.app.report", lambda *_: 0)
    options = [] if words is None else ["--methods", words]
    assert CliRunner().invoke(app, ["study", *options, "--out", str(tmp_path)]).exit_code == 0
    assert list(dict.fromkeys(run.method for run in asked)) == methods


def test_ctrl_c_stops_every_process_and_says_how_to_go_on(tmp_path):
    study = subprocess.Popen(
        [*COMMAND, "--methods", "ordinary", "--epochs", "1000", "--out", str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert study.stdout.readline().startswith("3 runs, 0 of them finished already")
    time.sleep(0.5)  # the workers are starting
    os.killpg(study.pid, signal.SIGINT)  # as a terminal does
    stdout, stderr = study.communicate(timeout=20)
    assert stdout == "Stopped with 0 of 3 runs finished: the same command goes on from there.\n"
    assert (study.returncode, stderr) == (130, "")
    for _ in range(100):  # multiprocessing's own helper goes a moment later
        try:
            os.killpg(study.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("a process is left behind")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--methods", "dctpss"], r"method must be one of ordinary, .*, got 'dctpss'; did you mean 'dctps'\?"),
        (["--methods", "all,iterative_snipp"], r"got 'iterative_snipp'; did you mean 'iterative_snip'\?"),
        (["--methods", ""], r"methods must be some of ordinary, .*, got none"),
        (["--densities", "0.1,1.5"], r"density must be in \(0, 1\], got 1.5"),
        (["--densities", "0.1,ten"], r"density must be in \(0, 1\], got 'ten'"),
        (["--seeds", "0"], r"seeds must be at least 1, got 0"),
        (["--epochs", "-1"], r"epochs must be at least 1, got -1"),
        (["--workers", "0"], r"workers must be at least 1, got 0"),
        (["--learning-rate", "0"], r"learning_rate must be positive and finite, got 0.0"),
        (["--out", __file__], r"out must be a writable directory, got '.*test_study_cli.py'"),
    ],
)
def test_a_bad_value_gets_one_sentence_and_runs_nothing(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["study", *options])
    assert result.exit_code == 2
    (line,) = [line for line in result.output.splitlines() if line.startswith("Error")]
    assert re.search(message, line)
    assert list(tmp_path.iterdir()) == []


def test_the_library_needs_none_of_the_extras():
    extras = ("pandas", "matplotlib", "rich", "typer", "mlxtend", "subspace.study")
    root = Path(subspace.__file__).parent
    for path in root.rglob("*.py"):
        if "study" not in path.relative_to(root).parts:
            imports = re.findall(r"^\s*(?:from|import) ([\w.]+)", path.read_text(), re.MULTILINE)
            assert not [name for name in imports if name.startswith(extras)], path


def test_the_command_says_in_one_sentence_which_extra_is_missing(monkeypatch):
    monkeypatch.delitem(sys.modules, "subspace.study.app")
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(
        SystemExit, match=r"^subspace needs typer for its studies: pip install 'torch-subspace\[study\]'$"
    ):
        main()


def test_a_disk_that_fails_stops_the_study_in_one_sentence(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("subspace.study.app.carry_out", full)
    result = CliRunner().invoke(app, ["study", "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert result.output.endswith("Stopped: [Errno 28] No space left on device. What is finished is kept.\n")
