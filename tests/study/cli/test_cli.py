"""The command as a user has it: a small study from end to end, Ctrl-C, and what it says to bad values."""

import dataclasses
import fcntl
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import subspace
from subspace.study.cli import main, options
from subspace.study.cli.app import app
from subspace.study.execution.execute import make_record
from subspace.study.results.store import Store
from subspace.study.spec import files
from subspace.study.spec.study import Study, Training
from tests.support.records import finished

FIRST = files.read(options.FIRST)
COMMAND = [sys.executable, "-m", "subspace.study.cli", "run"]
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


def invoke(*words):
    return CliRunner().invoke(app, list(map(str, words)), env={"COLUMNS": "200"})


@pytest.mark.slow
def test_a_study_ends_with_tables_figures_and_a_report_and_is_not_run_twice(small, tmp_path):
    where = ["--out", tmp_path / "out"]
    first = invoke("run", small, *where, "--launch", "workers=1", "--at", "bytes")
    assert (first.exit_code, first.stderr) == (0, "")
    assert "\x1b" not in first.stdout
    assert first.stdout.startswith("2 of 2 runs to train, in ")
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

    second = invoke("run", small, *where, "--launch", "workers=1", "--at", "bytes")
    assert second.exit_code == 0
    assert second.stdout.startswith("0 of 2 runs to train, in ")
    shown = first.stdout[first.stdout.index("Test accuracy") :]
    assert second.stdout.endswith(shown)
    reported = invoke("report", small, *where, "--at", "bytes")
    assert reported.stdout == shown

    again = invoke("status", tmp_path / "out/small/study.toml", *where)
    assert again.stdout.count("finished, ") == 2


def test_the_study_that_is_shown_is_the_one_that_was_given(small):
    options = ["train.epochs=7", "train.optimizer={name='SGD', momentum=0.9}", "dims=10,20", "methods=all", "seeds=2"]
    shown = invoke("show", small, *options)
    assert shown.exit_code == 2  # a file's densities and dims are not both to be had
    shown = invoke("show", *options, "models=lenet5", "data=mnist5k", "name=shown")
    path = Path(small).with_name("shown.toml")
    path.write_text(shown.stdout)
    train = dataclasses.replace(files.load(FIRST).train, epochs=7, optimizer={"name": "SGD", "momentum": 0.9})
    assert files.load(path) == Study("shown", ("all",), None, (10, 20), 2, train=train)


@pytest.mark.parametrize("settings", [[], ["seeds=7"], ["methods=all", "densities=0.5"]])
def test_settings_alone_are_settings_of_the_first_study(settings):
    shown = invoke("show", *settings)
    assert files.toml(files.load(FIRST, settings)) == shown.stdout


def test_plan_says_how_many_seeds_a_difference_needs_by_the_finished_runs(small, tmp_path):
    where = [small, "methods=rigl,dctps", "seeds=3", "--out", tmp_path / "out"]
    for run in files.load(files.read(small), ["methods=rigl,dctps", "seeds=3"]).runs():
        noise = {"rigl": (0.0, 0.02, -0.02), "dctps": (0.0, 0.0, 0.0)}[run.method.name][run.seed]
        Store(tmp_path / "out").write(
            run, finished(run, 0.8 + noise)
        )  # differences of a standard deviation of 2 points
    assert invoke("plan", *where).stdout.endswith("studies): 6 at density 1 %\n")
    assert invoke("plan", *where, "--points", 2).stdout.endswith("studies): 10 at density 1 %\n")
    assert "points must be above 0, got 0" in invoke("plan", *where, "--points", 0).output


def test_what_would_run_and_what_it_takes_is_said_and_nothing_runs(small, tmp_path):
    said = invoke("plan", small, "--out", tmp_path / "out", "--launch", "workers=3")
    assert said.exit_code == 0
    runs, time, seeds = said.stdout.splitlines()
    assert (runs, time) == ("would run: 2 runs, 4 epochs, 2 at a time", "time: unknown until a run has finished")
    assert seeds.startswith("seeds to see a difference of 3 points (")
    assert seeds.endswith(
        "unknown until two methods have two seeds each; in standard deviations of the difference: "
        "10 for 1, 5 for 2, 3 for 4"
    )
    listed = invoke("status", small, "--out", tmp_path / "out")
    assert listed.stdout.count("missing") == 2
    for run in files.load(small).runs():
        assert run.hash in listed.stdout
    assert not (tmp_path / "out/runs").exists()


@pytest.mark.slow
def test_quiet_says_nothing_but_failures(small, tmp_path):
    options = [small, "--out", tmp_path / "out", "--progress", "failures", "--launcher", "inline"]
    quiet = invoke("run", *options)
    assert (quiet.exit_code, quiet.stdout, quiet.stderr) == (0, "", "")
    broken = invoke("run", *options, "train.learning_rate=1e30")
    assert (broken.exit_code, broken.stdout) == (1, "")
    first, second = sorted(broken.stderr.splitlines())
    assert first.startswith("FAILED  DCTpS, EPL, density 0.01, seed 0")
    assert re.search("FloatingPointError: the loss must be finite, got (nan|inf) in epoch 1", second)


@pytest.mark.slow
def test_runs_that_failed_twice_are_tried_again_only_when_asked(small, tmp_path):
    runs = files.load(small).runs()
    store = Store(tmp_path / "out")
    for run in runs:
        store.write(run, make_record(None, "no luck", number=2))
    options = ["run", small, "--out", tmp_path / "out", "--launcher", "inline"]
    kept = invoke(*options)
    assert kept.exit_code == 1
    assert kept.stdout.count("no luck") == 2
    assert "No run has finished." in kept.stdout
    assert invoke(*options, "--retry").exit_code == 0


@pytest.mark.slow
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


@pytest.mark.slow
def test_on_a_terminal_there_are_bars_unless_lines_are_asked_for(small, tmp_path):
    def shown(*options):
        parent, child = pty.openpty()
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
        study = subprocess.Popen([*COMMAND, small, "--launcher", "inline", *options], stdout=child, stderr=child)
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
    plain = shown("--out", str(tmp_path / "plain"), "--progress", "lines")
    assert b"\x1b" not in plain
    assert b"2/2  " in plain


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_every_process_and_the_same_command_goes_on(small, tmp_path, number):
    settings = ["train.epochs=1000", "methods=ordinary"]
    command = [*COMMAND, small, *settings, "--out", str(tmp_path)]
    study = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert study.stdout.readline().startswith("1 of 1 runs to train, in ")
    (run,) = files.load(files.read(small), settings).runs()
    store = Store(tmp_path)
    while not store.progress(run):
        time.sleep(0.05)
        assert study.poll() is None
    os.killpg(study.pid, number)  # as a terminal does
    stdout, stderr = study.communicate(timeout=20)
    assert stdout == "Stopped with 0 of 1 runs finished: the same command goes on from there.\n"
    assert (study.returncode, stderr) == (130, "")
    stopped = len(store.progress(run))
    again = invoke("status", *command[4:])
    assert f"interrupted after epoch {stopped} of 1000" in again.stdout
    for _ in range(100):  # multiprocessing's own helper goes a moment later
        try:
            os.killpg(study.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("a process is left behind")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["methods=dctpss"], r"method must be one of ordinary, .*, got 'dctpss'; did you mean 'dctps'\?"),
        (["methods=all,iterative_snipp"], r"got 'iterative_snipp'; did you mean 'iterative_snip'\?"),
        (["methods="], r"methods must be some of ordinary, .*, got none"),
        (["methods=snip", "data="], r"data must be at least one data set .*, which snip also choose U by, got none"),
        (["densities=0.1,1.5"], r"density must be in \(0, 1\], got 1.5"),
        (["densities=0.1,ten"], r"densities\[1\]: Expected `float`, got `str`"),
        (["densities=0.1", "dims=3"], r"one of densities, dims, bytes must be given, got \(0.1,\) and \(3,\)"),
        (["seeds=0"], r"seeds must be at least one, got none"),
        (["seeds=1000000000"], r"at most 100,000 runs, got 16,000,000,000: set limit to allow them"),
        (
            ["seeds=[9223372036854775808]"],
            r"seed must be an integer of at least 0 and below 2\^63, got 9223372036854775808",
        ),
        (["name=" + "n" * 300], r"name must be that of a folder other than runs, of at most 200 bytes, got 'nnn"),
        (["name=1979-05-27"], r"name: Expected `str`, got `date`"),
        (["models={name='mlp', hidden=1979-05-27}"], r"options of mlp must be numbers, text and lists or tables"),
        (["models={name='mlp', hidden=[inf]}"], r"options of mlp must be numbers, text and lists or tables"),
        (["x=" + "[" * 5000], r"a study must (be nested less deeply|have keys among)"),
        (["train.epochs=-1"], r"train: epochs must be an integer of at least 1 and below 2\^63, got -1"),
        (["train.epochs=" + "9" * 400], r"(train: epochs must be|train.epochs: |train: ).*"),
        (["train.batch=9223372036854775808"], r"(train: batch must be|train.batch: ).*"),
        (["train.epoch=1"], r"train must have keys among .*, got 'epoch'; did you mean 'epochs'\?"),
        (["train.optimizer=Adamm"], r"optim must be one of .*, got 'Adamm'; did you mean 'Adam'\?"),
        (["train.optimizer={name='SGD', momentum=-1}"], r"momentum of SGD must be at least 0, got -1"),
        (["train.optimizer={name='SGD', momentum=-1.5}"], r"options of SGD must be those of .*Invalid momentum"),
        (["train.schedule={name='StepLR', step_size=-1}"], r"step_size of StepLR must be at least 0, got -1"),
        (
            ["train.schedule={name='StepLR', step_size=0}"],
            r"schedule must step by itself, got ZeroDivisionError.* from StepLR",
        ),
        (["train.device=quantum"], r"device must be one that torch can use here, got 'quantum': "),
        (["train.device=hpu"], r"device must be one that torch can use here, got 'hpu': "),
        (["methods={name='imp', rounds=-1}"], r"rounds of imp must be an integer of at least 1 and .*, got -1"),
        (["methods={name='imp', rounds=0}"], r"rounds of imp must be an integer of at least 1 and .*, got 0"),
        (["methods={name='rigl', delta_t=1.5}"], r"delta_t of rigl must be an integer of at least 1 and .*, got 1.5"),
        (["methods={name='snip', samples=-1}"], r"samples of snip must be an integer of at least 1 and .*, got -1"),
        (["models=lenet"], r"model must be one of .*, got 'lenet'; did you mean 'lenet5'\?"),
        (["models=nowhere.at:all"], r"model must be an import path MODULE:NAME, got 'nowhere.at:all': No module"),
        (["methods=..:x"], r"method must be an import path MODULE:NAME, got '..:x': "),
        (["data=mnist5"], r"data must be one of .*, got 'mnist5'; did you mean 'mnist5k'\?"),
        (["--launcher", "slrum"], r"launcher must be one of pool, inline, ray, slurm, got 'slrum'"),
        (["--launch", "partition=gpu"], r"options of pool must be workers, got 'partition'"),
        (["--launch", "workers=0"], r"workers must be an integer of at least 1, got 0"),
        (["--launch", "workers=two"], r"workers must be an integer of at least 1, got 'two'"),
        (["--log", "tensorbord"], r"got 'tensorbord'; did you mean 'tensorboard'\?"),
        (["--at", "bites"], r"cost must be one of .*, got 'bites'"),
        (["missing.toml"], r"missing.toml"),
        (["nul\0.toml"], r"a study's file must be a path, got "),
        (["deep.json"], r"a study must be nested less deeply, got too many levels"),
    ],
)
def test_a_bad_value_gets_one_sentence_and_runs_nothing(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep.json").write_text('{"seeds": ' + "[" * 100_000)
    result = invoke("run", *words, "--out", tmp_path / "out")
    assert result.exit_code == 2
    (line,) = [line for line in result.output.splitlines() if line.startswith("Error")]
    assert re.search(message, line)
    assert not (tmp_path / "out" / "runs").exists()


def test_a_reader_that_goes_away_is_no_bad_value(tmp_path):
    """As after `| head -1`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("subspace.study.cli.plan.typer.echo", broken_pipe)
        result = invoke("plan", "--out", tmp_path)
    assert result.exit_code != 2
    assert "Invalid value" not in result.stderr


def broken_pipe(*words, **options):
    raise BrokenPipeError(32, "Broken pipe")


def test_a_folder_that_cannot_be_made_is_told_in_one_sentence():
    result = invoke("run", "--out", __file__)
    assert result.exit_code == 1
    assert "test_cli.py must be writable, got: File exists" in result.stderr


@pytest.mark.parametrize("verb", ["run", "plan"])
def test_data_that_are_not_there_are_told_once_before_anything_runs(verb, tmp_path, monkeypatch):
    monkeypatch.setenv("SUBSPACE_DATA", "/nowhere")
    words = ["data=cifar10", "methods=dctps", "densities=0.01"]
    where = ["--out", tmp_path / "out"]
    for chosen, folder in (words, "/nowhere"), ([f'data={{name="cifar10", data_dir="{tmp_path}"}}'], tmp_path):
        result = invoke(verb, *chosen, *where)
        assert result.exit_code == 2
        (line,) = [line for line in result.output.splitlines() if line.startswith("Error")]
        assert "cifar-10-python.tar.gz (or its folder cifar-10-batches-py)" in line
        assert f"got {folder} without: save http" in line
    assert not (tmp_path / "out" / "runs").exists()
    assert invoke("show", *words).exit_code == 0
    assert invoke("status", *words, *where).exit_code == 0
    wrong = invoke(verb, 'data={name="mnist5k", tran=3}, "digits"', *where)
    assert "options of mnist5k must be test, train, got 'tran'; did you mean 'train'?" in wrong.output


def test_what_a_study_names_is_imported_by_run_and_plan_and_only_methods_by_status_and_report(tmp_path, monkeypatch):
    (tmp_path / "loud.py").write_text("open('imported', 'a').close()\n")
    monkeypatch.chdir(tmp_path)

    def imports(verb, *words):
        sys.modules.pop("loud", None)
        Path("imported").unlink(missing_ok=True)
        invoke(verb, *words, "seeds=1", *(["--out", "out"] if verb != "show" else []))
        return Path("imported").exists()

    for place in ("models", "data", "methods"):
        found = {verb for verb in ("show", "status", "report", "plan", "run") if imports(verb, f"{place}=loud:it")}
        assert found == {"plan", "run"} | ({"status", "report"} if place == "methods" else set()), place


def test_a_million_runs_are_counted_and_not_built(tmp_path, monkeypatch):
    monkeypatch.setattr("subspace.study.spec.study.Run", None)
    for verb in ("run", "plan", "status", "report"):
        told = invoke(verb, "methods=dctps", "densities=0.1", "seeds=1000000", "--out", tmp_path)
        assert told.exit_code == 2
        assert "a study must have at most 100,000 runs, got 1,000,000: set limit to allow them" in told.output
    assert invoke("show", "seeds=1000000").exit_code == 0


def test_a_limit_of_ones_own_is_a_setting(tmp_path):
    words = ["methods=dctps", "densities=0.1", "seeds=3", "--out", tmp_path]
    assert "at most 2 runs, got 3" in invoke("status", *words, "limit=2").output
    assert invoke("status", *words, "limit=3").exit_code == 0


CODES = "\x1b]0;owned\x07\x1b[2J"


def test_no_terminal_gets_a_control_code_from_what_a_record_or_a_study_says(small, tmp_path):
    study = files.load(files.read(small), [f"models={{name='{CODES}:x'}}"])
    store = Store(tmp_path / "out")
    for run in study.runs():
        record = make_record(None, f"RuntimeError: {CODES}", f"{CODES}", [CODES], number=2)
        store.write(run, record)
    path = tmp_path / "evil.json"
    path.write_text(
        json.dumps(
            {"seeds": 1, "methods": ["ordinary", "dctps"], "densities": [0.01]}
            | {"data": list(study.data), "models": [{"name": f"{CODES}:x"}], "train": {"epochs": 2, "batch": 50}}
        )
    )
    for verb in ("run", "plan", "status", "report", "show", "jacobian", "trainability"):
        told = invoke(verb, path, *(["--out", tmp_path / "out"] if verb != "show" else []))
        assert "\x1b" not in told.output, verb
        assert "\x07" not in told.output, verb


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:50]),
    "nested": lambda path: path.write_text("[" * 100_000),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "another": lambda path: path.write_text('{"a": 1}'),
    "of odd values": lambda path: path.write_text('{"schema": "2", "environment": 3}'),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the file of a study of three runs, and their results in `out`."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "small.toml").write_text(FILE.replace('"dctps"]', '"dctps", "freezenet"]'))
    done = invoke("run", folder / "small.toml", "--out", folder / "out", "--launcher", "inline")
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def done(trained, tmp_path):
    """The trained study's file, and a copy of its results, as words of a command."""
    return [trained / "small.toml", "--out", shutil.copytree(trained / "out", tmp_path / "out")]


@pytest.mark.slow
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_told_and_the_same_command_goes_on(kind, done):
    store, runs = Store(done[-1]), files.load(done[0]).runs()
    whole = [store.read(run) for run in runs]
    for run, name in zip(runs, ["result.json", "epochs.json", "state.pt"], strict=True):
        path = store.directory(run) / name
        if name != "result.json":
            store.path(run).unlink()
            path.write_bytes(b"")
        DAMAGE[kind](path)
    for verb in ("status", "plan", "report"):
        told = invoke(verb, *done)
        assert told.exit_code == 0, told.output
    assert not any(store.path(run).is_file() for run in runs[1:])
    assert invoke("run", *done, "--launcher", "inline").exit_code == 0
    for run, before in zip(runs, whole, strict=True):
        epochs = [{**epoch, "seconds": 0} for epoch in store.read(run)["metrics"]["epochs"]]
        assert epochs == [{**epoch, "seconds": 0} for epoch in before["metrics"]["epochs"]]


@pytest.mark.slow
def test_a_folder_that_can_only_be_read_has_its_status_and_its_report_elsewhere(done, tmp_path, monkeypatch):
    def refused(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("filelock.FileLock.acquire", refused)
    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    assert invoke("status", *done).stdout.count("finished, ") == 3
    told = invoke("report", *done, "--to", tmp_path / "elsewhere")
    assert told.exit_code == 0, told.output
    assert (tmp_path / "elsewhere" / "report.html").exists()
    assert invoke("run", *done).exit_code == 1


def test_the_library_needs_none_of_the_extras():
    extras = ("pandas", "matplotlib", "rich", "typer", "mlxtend", "msgspec", "tomlkit", "subspace.study")
    root = Path(subspace.__file__).parent
    for path in root.rglob("*.py"):
        if "study" not in path.relative_to(root).parts:
            imports = re.findall(r"^\s*(?:from|import) ([\w.]+)", path.read_text(), re.MULTILINE)
            assert not [name for name in imports if name.startswith(extras)], path


@pytest.mark.slow
def test_workers_load_no_tables_plots_or_launchers():
    heavy = ("pandas", "matplotlib", "ray", "submitit", "rich")
    code = f"import sys, subspace.study.execution.launchers.worker; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_the_command_says_in_one_sentence_which_extra_is_missing(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("subspace.study.cli.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(
        SystemExit, match=r"^subspace needs typer for its studies: pip install 'torch-subspace\[study\]'$"
    ):
        main()


def test_a_disk_that_fails_stops_the_study_in_one_sentence(small, tmp_path):
    run = files.load(small).runs()[0]
    path = Store(tmp_path / "out").directory(run)
    path.parent.mkdir(parents=True)
    path.write_text("in the way")
    result = invoke("run", small, "--out", tmp_path / "out", "--launcher", "inline")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert re.match(r"Stopped: .* must be writable, got: .*\. What is finished is kept", line)
    assert line.endswith("and the same command goes on from there.")


def test_a_result_of_a_newer_version_is_named_and_left_alone(small, tmp_path):
    run = files.load(small).runs()[0]
    store = Store(tmp_path / "out")
    store.write(run, make_record(None, "x"))
    store.path(run).write_text(newer := json.dumps({"schema": 99, "environment": {"subspace": "9.9"}}))
    for verb in ("run", "plan", "status", "report"):
        result = invoke(verb, small, "--out", tmp_path / "out")
        assert result.exit_code == 1
        assert "must be of schema 2 or older, got 99, which version 9.9 wrote: update torch-subspace" in result.stderr
    assert store.path(run).read_text() == newer


def test_packing_writes_a_smaller_file_and_says_what_is_lost(tmp_path, monkeypatch):
    model = subspace.recipes.random_pruning(torch.nn.Linear(100, 50), dim=2000)
    subspace.save(model, tmp_path / "exact")
    (tmp_path / "losses.py").write_text(
        "import subspace, torch\n"
        "def largest(file):\n"
        "    weight = subspace.load(torch.nn.Linear(100, 50), file).weight\n"
        "    return float(weight.detach().abs().max())\n"
    )
    monkeypatch.chdir(tmp_path)
    told = invoke("pack", "exact", "small", "--bits", "8,6,4", "--measure", "losses:largest", "--rise", 1)
    assert (told.exit_code, told.stderr) == (0, "")
    small, exact = ((tmp_path / name).stat().st_size for name in ("small", "exact"))
    assert re.search(rf"small: 4 bits, {small:,} bytes in place of {exact:,}; theta changes by \d+\.\d\d%", told.stdout)
    assert "exact: 0.09" in told.stdout
    for words, why in (
        (["exact", "other", "--bits", "8,6"], "bits must be one number where there is no measure"),
        (["exact", "other", "--bits", "a"], "bits must be integers with commas between, got 'a'"),
        (["exact", "other", "--bits", "9"], "bits must be an integer from 2 to 8, got 9"),
        (["none", "other"], "none must be a checkpoint written by subspace.save, got no such file"),
        (["small", "other"], "theta must be exact in a file to pack"),
    ):
        refused = invoke("pack", *words)
        assert refused.exit_code == 2
        assert why in " ".join(refused.stderr.replace("│", " ").split())
    assert not (tmp_path / "other").exists()
