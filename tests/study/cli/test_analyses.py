"""Commands that make more of a study's results than its report does: they train nothing, and say what is missing."""

import pandas as pd
import pytest
from typer.testing import CliRunner

from subspace.study.cli.app import app
from subspace.study.entries.entry import Choice
from subspace.study.results.store import Store
from subspace.study.spec.study import Run

pytestmark = pytest.mark.slow


def command(*words):
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})


TINY = """
methods = ["ordinary", "dctps"]
densities = [0.1]
seeds = 2
models = [{name = "mlp", hidden = [5]}, {name = "mlp", hidden = [5], depth = 2}]
data = ["digits"]
[train]
epochs = 1
jacobian = 2
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny.toml").write_text(TINY)
    told = command(
        "run", folder / "tiny.toml", "--out", folder / "out", "--launcher", "inline", "--progress", "failures"
    )
    assert told.exit_code == 0, told.output
    return folder


def test_analyses_are_made_of_what_a_study_has_left(trained):
    told = command("trainability", trained / "tiny.toml", "--out", trained / "out", "--accuracy", "0.01")
    assert told.exit_code == 0, told.output
    table = pd.read_csv(trained / "out" / "tiny" / "trainability.csv")
    assert (table["depth"].tolist(), table["runs"].tolist(), set(table["share"])) == ([2, 2, 3, 3], [2] * 4, {1.0})
    told = command("jacobian", trained / "tiny.toml", "--out", trained / "out")
    assert told.exit_code == 0, told.output
    assert len(pd.read_csv(trained / "out" / "tiny" / "jacobian.csv")) == 8 * 2 * 2 * 10
    for name in ("trainability-1", "jacobian-1", "jacobian-2", "jacobian-3"):
        for kind in ("png", "svg"):
            assert (trained / "out" / "tiny" / f"{name}.{kind}").stat().st_size > 1000
            assert f"{name}.png" in told.output or name.startswith("trainability")


def test_analyses_train_nothing_and_say_what_is_missing(trained):
    told = command("trainability", trained / "tiny.toml", "seeds=3", "--out", trained / "out")
    assert "4 of 12 runs have no result yet" in told.output
    none = command("trainability", trained / "tiny.toml", "--out", trained / "none")
    assert none.exit_code == 2
    assert "must have results of tiny, got none" in none.output
    without = command("jacobian", trained / "tiny.toml", "train.jacobian=0", "--out", trained / "out")
    assert without.exit_code == 2
    assert Store(trained / "out").read(Run(Choice("dctps"), density=0.1)) is None


def test_an_accuracy_out_of_range_is_refused(trained):
    told = command("trainability", trained / "tiny.toml", "--out", trained / "out", "--accuracy", "2")
    assert told.exit_code == 2
    assert "accuracy must be in (0, 1], got 2.0" in told.output
