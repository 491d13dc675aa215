"""Laws are checked with the same examples at every run; `--hypothesis-profile=search` looks for new ones.

By itself, pytest checks a law with fewer of them than `python dev.py test`, whose profile is `laws`.
"""

import gc
import os
import signal

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

from tests.support.processes import processes

os.environ.setdefault("SUBSPACE_COSTS", "typical")  # the same routes on every machine
torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before any kernel is imported
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background; what is started inherits it
    signal.signal(signal.SIGINT, signal.default_int_handler)
ONCE = [HealthCheck.too_slow, HealthCheck.differing_executors]
settings.register_profile("laws", deadline=None, derandomize=True, max_examples=8, suppress_health_check=ONCE)
settings.register_profile("quick", parent=settings.get_profile("laws"), max_examples=3)
settings.register_profile("search", parent=settings.get_profile("laws"), derandomize=False, max_examples=300)
settings.register_profile("once", parent=settings.get_profile("laws"), phases=[Phase.explicit, Phase.generate])
settings.load_profile("quick")
LONG = {"slow", "ray", "slurm", "torchrun", "browser", "crash", "compile"}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """What takes long comes first, so that no process is left alone with it at the end."""
    items.sort(key=lambda item: not LONG.intersection(mark.name for mark in item.iter_markers()))


@pytest.fixture(scope="module", autouse=True)
def _fewer_objects():
    """Leave what imports have made out of searches of all objects: it is a hundred times what a test makes."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    gc.unfreeze()  # or libraries complain at the end of what is left


@pytest.fixture(scope="session")
def run():
    """What runs a function in two processes of one group, which are started when the first test asks for them."""
    with processes() as run:
        yield run
