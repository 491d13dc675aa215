"""The command as a user has it: a small study from end to end, Ctrl-C, and what it says to bad values."""

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

import subspace
from subspace.study.cli import main
from subspace.study.cli.study import app
from subspace.study.execution import study as experiment
from subspace.study.execution.execute import outcome
from subspace.study.results.store import Store
from subspace.study.spec.study import Study, Training

COMMAND = [sys.executable, "-m", "subspace.study.cli", "study"]
FILE = """
methods = ["ordinary", "dctps"]
densities = [0.01]
seeds = 1
data = [{name = "mnist5k", train = 100, test = 50}]
[train]
epochs = 2
batch = 50
"""


@pytest.fixture
def small(tmp_path):
    """The file of a study of two runs, a second each."""
    (tmp_path / "small.toml").write_text(FILE)
    return str(tmp_path / "small.toml")


def invoke(*options):
    return CliRunner().invoke(app, ["study", *map(str, options)])


def test_a_study_ends_with_tables_figures_and_a_report_and_is_not_run_twice(small, tmp_path):
    options = [small, "--out", tmp_path / "out", "--workers", 1, "--at", "bytes"]
    first = invoke(*options)
    assert (first.exit_code, first.stderr) == (0, "")
    assert "\x1b" not in first.stdout
    assert first.stdout.startswith("2 runs, 0 of them finished already")
    records = [json.loads(path.read_text()) for path in (tmp_path / "out/runs").glob("*/result.json")]
    assert sorted(record["configuration"]["method"]["name"] for record in records) == ["dctps", "ordinary"]
    runs = pd.read_parquet(tmp_path / "out/small/runs.parquet").set_index("method")
    for record in records:
        accuracy = record["metrics"]["epochs"][-1]["test_accuracy"]
        assert runs["test_accuracy"][record["configuration"]["method"]["name"]] == accuracy
        assert f" {100 * accuracy:.1f} " in first.stdout
        assert record["environment"]["threads"] == 1
    for name in (
        "report.html",
        "study.toml",
        "runs.csv",
        "epochs.parquet",
        "tensors.parquet",
        "table.csv",
        "at-bytes.csv",
    ):
        assert (tmp_path / "out/small" / name).stat().st_size > 50, name
    assert list((tmp_path / "out/small").glob("*.svg"))
    assert {path.stem for path in (tmp_path / "out/small").glob("*.svg")} == {
        path.stem for path in (tmp_path / "out/small").glob("*.png")
    }

    second = invoke(*options)
    assert second.exit_code == 0
    assert second.stdout.startswith("2 runs, 2 of them finished already")
    shown = first.stdout[first.stdout.index("Test accuracy") :]
    assert second.stdout.endswith(shown)
    reported = invoke(*options, "--report")
    assert reported.stdout == shown

    again = invoke(tmp_path / "out/small/study.toml", "--out", tmp_path / "out", "--list")
    assert again.stdout.count("finished, ") == 2


def test_the_study_that_is_shown_is_the_one_that_was_given(small):
    options = ["--set", "train.epochs=7", "--set", "train.optimizer={name='SGD', momentum=0.9}", "--dims", "10,20"]
    shown = invoke(small, *options, "--methods", "all", "--seeds", "2", "--show")
    assert shown.exit_code == 2  # a file's densities and --dims are not both to be had
    shown = invoke(*options, "--methods", "all", "--seeds", "2", "--show", "--model", "lenet5", "--data", "mnist5k")
    path = Path(small).with_name("shown.toml")
    path.write_text(shown.stdout)
    train = Training(epochs=7, optimizer={"name": "SGD", "momentum": 0.9})
    assert experiment.files.study(experiment.files.read(path)) == Study(
        "study", ("all",), None, (10, 20), 2, train=train
    )


def test_what_would_run_and_what_it_takes_is_said_and_nothing_runs(small, tmp_path):
    said = invoke(small, "--out", tmp_path / "out", "--dry-run")
    assert said.exit_code == 0
    assert said.stdout.startswith("would run: 2 runs, 4 epochs in all")
    for word in ("memory", "disk"):
        assert word in said.stdout
    listed = invoke(small, "--out", tmp_path / "out", "--list")
    assert listed.stdout.count("missing") == 2
    for run in experiment.files.study(experiment.files.read(small)).runs():
        assert run.hash in listed.stdout
    assert not (tmp_path / "out/runs").exists()


def test_quiet_says_nothing_but_failures(small, tmp_path):
    quiet = invoke(small, "--out", tmp_path / "out", "--quiet", "--workers", 1)
    assert (quiet.exit_code, quiet.stdout, quiet.stderr) == (0, "", "")
    broken = invoke(small, "--out", tmp_path / "out", "--quiet", "--set", "train.learning_rate=1e30", "--workers", 1)
    assert (broken.exit_code, broken.stdout) == (1, "")
    first, second = sorted(broken.stderr.splitlines())
    assert first.startswith("FAILED  DCTpS, EPL, density 0.01, seed 0")
    assert re.search("FloatingPointError: the loss must be finite, got (nan|inf) in epoch 1", second)


def test_runs_that_failed_twice_are_tried_again_only_when_asked(small, tmp_path):
    runs = experiment.files.study(experiment.files.read(small)).runs()
    store = Store(tmp_path / "out")
    for run in runs:
        store.write(run, outcome(None, "no luck", number=2))
    options = [small, "--out", tmp_path / "out", "--workers", 1]
    kept = invoke(*options)
    assert kept.exit_code == 1
    assert kept.stdout.count("no luck") == 2
    assert "No run has finished." in kept.stdout
    assert invoke(*options, "--retry").exit_code == 0


def test_a_study_from_python_gives_the_long_table(small, tmp_path):
    import subspace.study as studies

    table = studies.run(small, out=tmp_path / "out", launcher="inline")
    assert list(table["status"]) == ["finished", "finished"]
    assert table.equals(
        studies.run(studies.Study("small", ("ordinary", "dctps"), (0.01,), seeds=1, **more()), out=tmp_path / "out")
    )


def more():
    """What FILE says beside the grid."""
    return {"data": ({"name": "mnist5k", "train": 100, "test": 50},), "train": Training(epochs=2, batch=50)}


def test_on_a_terminal_there_are_bars_unless_lines_are_asked_for(small, tmp_path):
    def shown(*options):
        parent, child = pty.openpty()
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
        study = subprocess.Popen([*COMMAND, small, "--workers", "1", *options], stdout=child, stderr=child)
        os.close(child)
        text = b""
        while True:
            try:
                text += os.read(parent, 4096)
            except OSError:  # the other end has gone
                break
        assert study.wait(60) == 0
        return text

    live = shown("--out", str(tmp_path / "live"))
    assert b"\x1b[" in live
    assert b" 0/2 runs " in live
    assert "seed 0, lenet5 … ".encode() in live
    plain = shown("--out", str(tmp_path / "plain"), "--plain")
    assert b"\x1b" not in plain
    assert b"2/2  " in plain


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_every_process_and_the_same_command_goes_on(small, tmp_path, number):
    command = [*COMMAND, small, "--out", str(tmp_path), "--set", "train.epochs=1000", "--methods", "ordinary"]
    study = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert study.stdout.readline().startswith("1 runs, 0 of them finished already")
    table = {**experiment.files.read(small), "methods": ["ordinary"]}
    (run,) = experiment.files.study(experiment.files.assigned(table, ["train.epochs=1000"])).runs()
    store = Store(tmp_path)
    while not store.progress(run):
        time.sleep(0.05)
        assert study.poll() is None
    os.killpg(study.pid, number)  # as a terminal does
    stdout, stderr = study.communicate(timeout=20)
    assert stdout == "Stopped with 0 of 1 runs finished: the same command goes on from there.\n"
    assert (study.returncode, stderr) == (130, "")
    stopped = len(store.progress(run))
    again = invoke(*command[4:], "--list")
    assert f"interrupted after epoch {stopped} of 1000" in again.stdout
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
        (
            ["--methods", "snip", "--data", ""],
            r"data must be at least one data set .*, which snip also choose U by, got none",
        ),
        (["--densities", "0.1,1.5"], r"density must be in \(0, 1\], got 1.5"),
        (["--densities", "0.1,ten"], r"densities\[1\]: Expected `float`, got `str`"),
        (["--densities", "0.1", "--dims", "3"], r"densities or dims must be given, not both, got \(0.1,\) and \(3,\)"),
        (["--seeds", "0"], r"seeds must be at least one, got none"),
        (["--set", "train.epochs=-1"], r"train: epochs must be at least 1, got -1"),
        (["--set", "train.epoch=1"], r"train must have keys among .*, got 'epoch'; did you mean 'epochs'\?"),
        (
            ["--set", "train.optimizer=Adamm"],
            r"torch.optim must have 'Adamm', got none of that name; did you mean 'Adam'\?",
        ),
        (["--set", "train.device=quantum"], r"device must be one that torch can use here, got 'quantum': "),
        (
            ["--set", "train.processes=2"],
            r"processes must be as many as were started, 1, got 2: .*torchrun --nproc-per-node 2",
        ),
        (["--model", "lenet"], r"model must be one of .*, got 'lenet'; did you mean 'lenet5'\?"),
        (["--model", "nowhere.at:all"], r"model must be an import path MODULE:NAME, got 'nowhere.at:all': No module"),
        (["--data", "mnist"], r"data must be one of .*, got 'mnist'; did you mean 'mnist5k'\?"),
        (["--launcher", "slrum"], r"launcher must be one of pool, inline, ray, slurm, got 'slrum'"),
        (["--launch", "partition=gpu"], r"options of pool must be none, got partition"),
        (["--workers", "0"], r"workers must be at least 1, got 0"),
        (["--log", "tensorbord"], r"got 'tensorbord'; did you mean 'tensorboard'\?"),
        (["--at", "bites"], r"got 'bites'"),
        (["missing.toml"], r"missing.toml"),
        (["--out", __file__], r"test_study_cli.py must be writable, got: File exists"),
    ],
)
def test_a_bad_value_gets_one_sentence_and_runs_nothing(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke(*options, *([] if "--out" in options else ["--out", tmp_path / "out"]))
    assert result.exit_code == 2
    (line,) = [line for line in result.output.splitlines() if line.startswith("Error")]
    assert re.search(message, line)
    assert not (tmp_path / "out" / "runs").exists()


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_data_that_are_not_there_are_told_once_before_anything_runs(more, tmp_path, monkeypatch):
    monkeypatch.setenv("SUBSPACE_DATA", "/nowhere")
    options = ["--data", "cifar10", "--methods", "dctps", "--densities", "0.01", "--out", tmp_path / "out", *more]
    for chosen, folder in ([], "/nowhere"), (["--data-dir", tmp_path], tmp_path):
        result = invoke(*options, *chosen)
        assert result.exit_code == 2
        (line,) = [line for line in result.output.splitlines() if line.startswith("Error")]
        assert "cifar-10-python.tar.gz (or its folder cifar-10-batches-py)" in line
        assert f"got {folder} without: save http" in line
        assert "another folder by --data-dir" in line
    assert not (tmp_path / "out" / "runs").exists()
    assert invoke(*options, "--show").exit_code == 0
    wrong = invoke("--data", '{name="mnist5k", tran=3}, "digits"', "--out", tmp_path / "out")
    assert "options of mnist5k must be test, train, got 'tran'; did you mean 'train'?" in wrong.output


def test_the_library_needs_none_of_the_extras():
    extras = ("pandas", "matplotlib", "rich", "typer", "mlxtend", "msgspec", "tomlkit", "subspace.study")
    root = Path(subspace.__file__).parent
    for path in root.rglob("*.py"):
        if "study" not in path.relative_to(root).parts:
            imports = re.findall(r"^\s*(?:from|import) ([\w.]+)", path.read_text(), re.MULTILINE)
            assert not [name for name in imports if name.startswith(extras)], path


def test_workers_load_no_tables_plots_or_launchers():
    heavy = ("pandas", "matplotlib", "ray", "submitit", "rich")
    code = f"import sys, subspace.study.execution.launchers.worker; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_the_command_says_in_one_sentence_which_extra_is_missing(monkeypatch):
    monkeypatch.delitem(sys.modules, "subspace.study.cli.study")
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(
        SystemExit, match=r"^subspace needs typer for its studies: pip install 'torch-subspace\[study\]'$"
    ):
        main()


def test_a_disk_that_fails_stops_the_study_in_one_sentence(small, tmp_path):
    run = experiment.files.study(experiment.files.read(small)).runs()[0]
    (Store(tmp_path / "out").directory(run) / "state.pt").mkdir(parents=True)  # nothing can be renamed to it
    result = invoke(small, "--out", tmp_path / "out", "--workers", 1)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert re.match(r"Stopped: .*state\.pt must be writable, got: Is a directory\. What is finished is kept", line)
    assert line.endswith("and the same command goes on from there.")


def test_a_result_of_a_newer_version_is_named_and_left_alone(small, tmp_path):
    run = experiment.files.study(experiment.files.read(small)).runs()[0]
    store = Store(tmp_path / "out")
    store.write(run, outcome(None, "x"))
    store.path(run).write_text(newer := json.dumps({"schema": 99, "environment": {"subspace": "9.9"}}))
    result = invoke(small, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "which version 9.9 wrote: update torch-subspace" in result.stderr
    assert store.path(run).read_text() == newer
