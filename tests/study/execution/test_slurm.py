"""What is Slurm's alone: with submitit's own executors in place of a cluster, and with a stand-in for sbatch."""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from subspace.study.entries.entry import Choice
from subspace.study.execution.launchers.inline import Inline
from subspace.study.execution.launchers.slurm import Slurm
from subspace.study.results.store import Store
from subspace.study.spec.study import Run, Training

pytest.importorskip("submitit")

pytestmark = pytest.mark.slurm


def run(seed=0, epochs=1, **model):
    train = Training(epochs=epochs, batch=20)
    return Run(Choice("dctps"), Choice("tiny:model", model), Choice("tiny:data"), density=0.3, seed=seed, train=train)


def wait_until(condition):
    while not condition():
        time.sleep(0.02)


def figures(store, each):
    record = store.read(each)
    assert record["error"] is None, record["traceback"]
    return [(epoch["train_loss"], epoch["test_accuracy"]) for epoch in record["metrics"]["epochs"]]


def test_a_job_that_is_preempted_goes_on_from_its_last_epoch(tiny_project, tmp_path):
    store, each = Store(tmp_path), run(epochs=60)
    with Slurm(store.folder, {"cluster": "local"}) as launcher:
        (job,) = launcher.submit([each])
        wait_until(lambda: len(store.progress(each)) > 2)
        assert not job.done()
        os.kill(int(Path(f"pid-{job.job.job_id}").read_text()), signal.SIGUSR2)  # as Slurm does
        wait_until(job.done)
        assert job.result() == "ended"
    assert "this job is preempted" in job.job.stderr()
    Inline(tmp_path / "alone").submit([each])
    assert figures(store, each) == figures(Store(tmp_path / "alone"), each)


def test_a_job_that_is_detached_goes_on(tiny_project, tmp_path):
    store, each = Store(tmp_path), run(epochs=3000)
    with Slurm(store.folder, {"cluster": "local", "detach": True}) as launcher:
        (job,) = launcher.submit([each])
        wait_until(lambda: store.progress(each))
    before = len(store.progress(each))
    wait_until(lambda: len(store.progress(each)) > before)
    job.job.cancel()
    wait_until(job.done)


def test_debugging_runs_in_this_process(tiny_project, tmp_path):
    with Slurm(tmp_path, {"cluster": "debug"}) as launcher:
        assert launcher.capacity == 1
        (job,) = launcher.submit([run()])
        assert job.result() == "ended"
    assert Path("pid-").read_text() == str(os.getpid())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"timout_min": 5}, "got 'timout_min'; did you mean 'timeout_min'"),
        ({"slurm_partitio": "gpu"}, "got 'slurm_partitio'; did you mean 'slurm_partition'"),
        ({"timeout_min": "long"}, "timeout_min of slurm must be as submitit has it, got 'long'"),
        ({"cluster": "lsf"}, "cluster must be slurm, local or debug, got 'lsf'"),
    ],
)
def test_options_that_submitit_does_not_have_are_errors_of_one_sentence(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        Slurm(tmp_path, {"cluster": "local", **options})


@pytest.mark.skipif(shutil.which("sbatch") is not None, reason="there is Slurm")
def test_a_machine_without_slurm_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="must run where jobs are submitted, got a machine without sbatch"):
        Slurm(tmp_path, {})


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """Stand-ins for Slurm's commands: they write down how they were called."""
    (tmp_path / "bin").mkdir()
    for name, does in {
        "sbatch": f'cp "$1" {tmp_path}/submitted && echo Submitted batch job 12',
        "sacct": "echo 'JobID|State'",
        "scancel": f"echo $1 >> {tmp_path}/cancelled",
        "srun": "",
    }.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def test_runs_are_submitted_as_one_array_and_cancelled_on_the_way_out(sbatch):
    with Slurm(sbatch / "results", {"slurm_partition": "short", "mem_gb": 4}) as launcher:
        assert launcher.capacity is None
        jobs = launcher.submit([run(seed) for seed in range(3)])
        lines = (sbatch / "submitted").read_text().splitlines()
        assert not any(job.done() for job in jobs)
    wanted = [
        "--array=0-2%3",
        "--cpus-per-task=1",
        "--partition=short",
        "--mem=4GB",
        "--time=240",
        "--job-name=subspace",
    ]
    assert {f"#SBATCH {line}" for line in wanted} <= set(lines)
    assert (sbatch / "cancelled").read_text().split() == ["12_0", "12_1", "12_2"]


def test_what_slurm_refuses_is_an_error_with_its_words(sbatch):
    (sbatch / "bin" / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition' >&2; exit 1\n")
    with (
        Slurm(sbatch / "results", {}) as launcher,
        pytest.raises(ValueError, match="options of slurm must be ones that it takes, got: .*invalid partition"),
    ):
        launcher.submit([run()])
