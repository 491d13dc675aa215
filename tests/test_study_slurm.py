"""Laws of the Slurm launcher: with submitit's own executors in place of a cluster, and with a stand-in for sbatch."""

import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from subspace.study.entries.entry import Choice
from subspace.study.execution.launchers import Died
from subspace.study.execution.launchers.inline import Inline
from subspace.study.execution.launchers.slurm import Slurm
from subspace.study.results.store import StorageError, Store
from subspace.study.spec.study import Run, Training

pytest.importorskip("submitit")

MODULE = """
import os
import sys
from pathlib import Path
import torch
from torch import nn
from subspace.study.data.samples import Data, Tensors

def data(n=120):
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(n + 40, 6, generator=generator), torch.arange(n + 40) % 3
    return Data(Tensors(images[:n], labels[:n]), Tensors(images[n:], labels[n:]), 3)

def model(key, num_classes, fault=""):
    Path(f"pid-{os.environ.get('SUBMITIT_LOCAL_JOB_ID', '')}").write_text(str(os.getpid()))
    if fault:
        print("there was no memory left", file=sys.stderr)
        os.kill(os.getpid(), 9)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(key.bits(1)[0] >> 1))
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, num_classes))
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder with the module, which is the present one, and in which jobs start."""
    (tmp_path / "little.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("little", None)


def run(seed=0, epochs=1, **model):
    train = Training(epochs=epochs, batch=20)
    return Run(
        Choice("dctps"), Choice("little:model", model), Choice("little:data"), density=0.3, seed=seed, train=train
    )


def until(condition, seconds=40.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def results(launcher, jobs):
    """What became of every job."""
    until(lambda: launcher.wait(jobs, 0.05) or all(job.done() for job in jobs))
    return [job.result() for job in jobs]


def figures(store, each):
    record = store.read(each)
    assert record["error"] is None, record["traceback"]
    return [(epoch["train_loss"], epoch["test_accuracy"]) for epoch in record["metrics"]["epochs"]]


def test_jobs_bring_runs_to_their_records_and_a_preempted_one_goes_on_from_its_last_epoch(place):
    store, runs = Store("results"), [run(epochs=60), run(seed=1)]
    with Slurm(store.folder, {"cluster": "local"}) as launcher:
        jobs = launcher.submit(runs)
        assert [job.run for job in jobs] == runs
        until(lambda: len(store.progress(runs[0])) > 2)
        assert not jobs[0].done()
        os.kill(int(Path(f"pid-{jobs[0].job.job_id}").read_text()), signal.SIGUSR2)  # as Slurm does
        assert results(launcher, jobs) == ["ended", "ended"]
    assert "this job is preempted" in jobs[0].job.stderr()
    Inline(place / "alone").submit(runs)
    for each in runs:
        assert figures(store, each) == figures(Store("alone"), each)


def test_jobs_that_die_or_cannot_store_say_why_and_harm_no_other(place, monkeypatch):
    monkeypatch.setattr("submitit.core.core.Job._results_timeout_s", 0)  # there is no slow file system to wait for
    store, killed, full, good = Store("results"), run(fault="killed"), run(seed=2), run(seed=3)
    store.directory(full).parent.mkdir(parents=True)
    store.directory(full).write_text("in the way")
    with Slurm(store.folder, {"cluster": "local"}) as launcher:
        jobs = launcher.submit([killed, full, good])
        until(lambda: all(job.done() for job in jobs))
        with pytest.raises(Died, match=r"^job \d+ ended without a result, finished: there was no memory left$"):
            jobs[0].result()
        with pytest.raises(StorageError, match=f"{full.hash}.* must be writable"):
            jobs[1].result()
        assert jobs[2].result() == "ended"
    assert store.read(killed) is None
    assert len(figures(store, good)) == 1


@pytest.mark.parametrize("detach", [False, True])
def test_leaving_the_block_stops_what_is_under_way_unless_it_is_detached(place, detach):
    store, each = Store("results"), run(epochs=3000)
    with Slurm(store.folder, {"cluster": "local", "detach": detach}) as launcher:
        (job,) = launcher.submit([each])
        until(lambda: store.progress(each))
    if detach:
        before = len(store.progress(each))
        until(lambda: len(store.progress(each)) > before)
        job.job.cancel()
    until(job.done)
    with store.held(each) as free:
        assert free
        assert store.read(each) is None
        assert store.read_state(each) is not None


def test_debugging_runs_in_this_process(place):
    with Slurm(place / "results", {"cluster": "debug"}) as launcher:
        assert launcher.capacity == 1
        assert results(launcher, launcher.submit([run()])) == ["ended"]
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
