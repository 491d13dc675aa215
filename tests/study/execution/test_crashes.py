"""A study that is killed at random moments ends as one that is not: nothing is lost, torn or doubled."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from subspace.study.results.store import Store
from tests.study.execution.crash_driver import RUNS

KILLS = 20
pytestmark = pytest.mark.crash


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds worker processes in Linux's /proc")
def test_killed_at_random_moments_a_study_ends_as_if_undisturbed(tmp_path):
    driver = [sys.executable, Path(__file__).with_name("crash_driver.py"), tmp_path, str(KILLS), "0"]
    outcome = json.loads(subprocess.run(driver, stdout=subprocess.PIPE, check=True, timeout=600).stdout)
    assert sum(outcome["kills"].values()) == KILLS
    assert all(outcome["kills"][kind] >= 4 for kind in ("all", "parent", "worker"))
    assert outcome["studies"] >= 2
    undisturbed = results(tmp_path / "undisturbed")
    assert len({json.dumps(metrics) for metrics in undisturbed.values()}) == len(RUNS)
    for number in range(outcome["studies"]):
        assert results(tmp_path / str(number)) == undisturbed, number
    said = (tmp_path / "said.txt").read_text()
    assert "set aside" not in said
    assert "killed by SIGKILL" in said


def results(folder):
    """The figures of every run but its time and its exact peak of memory, to which Python adds a little.

    Nothing else may be in the folder than a finished run has.
    """
    store, figures = Store(folder), {}
    for run in RUNS:
        record = store.read(run)
        assert record["status"] == "finished", record["error"]
        left = {path.name for path in store.directory(run).iterdir()}
        assert {"result.json", "epochs.json"} <= left <= {"result.json", "epochs.json", "lock"}
        metrics = dict(record["metrics"])
        epochs = [{**epoch, "seconds": 0} for epoch in metrics["epochs"]]
        assert metrics["peak_bytes"] > 4 * 784 * 20
        figures[run.hash] = {**metrics, "seconds": 0, "peak_bytes": 0, "epochs": epochs}
    assert {path.name for path in (folder / "runs").iterdir()} == set(figures)
    return figures
