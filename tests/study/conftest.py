"""What tests of the study share."""

import os
import sys
from pathlib import Path

import pytest

from subspace.study.training import processes
from tests.support.processes import start_quickly

PROJECT = '''
"""Small data and networks of one's own, and faults of them."""
import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn

from subspace.study.data import Data, Tensors


def data(n=120):
    generator = torch.Generator().manual_seed(0)
    inputs, labels = torch.randn(n + 40, 6, generator=generator), torch.arange(n + 40) % 3
    return Data(Tensors(inputs[:n], labels[:n]), Tensors(inputs[n:], labels[n:]), 3)


def model(key, num_classes, fault=""):
    """Writes down the process that it is built in, and fails as asked."""
    Path(f"pid-{os.environ.get('SUBMITIT_LOCAL_JOB_ID', '')}").write_text(str(os.getpid()))
    if fault == "raises":
        raise LookupError("no such thing")
    if fault == "killed":
        print("there was no memory left", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "slow":
        time.sleep(60)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(key.bits(1)[0] >> 1))
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, num_classes))
'''


@pytest.fixture(scope="module")
def tiny_project(tmp_path_factory):
    """The folder of a project with the module `tiny`, which is the present one while the module's tests run."""
    folder, before = tmp_path_factory.mktemp("project"), Path.cwd()
    (folder / "tiny.py").write_text(PROJECT)
    os.chdir(folder)
    yield folder
    os.chdir(before)
    sys.modules.pop("tiny", None)
    sys.path[:] = [path for path in sys.path if path != str(folder)]


@pytest.fixture
def quick(monkeypatch):
    """The processes of a run come of one that has imported torch; test_launchers.py has them as users have."""
    monkeypatch.setattr(processes, "spawn", start_quickly)
