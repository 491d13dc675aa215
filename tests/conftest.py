"""Laws are checked with the same examples at every run; `--hypothesis-profile=search` looks for new ones.

By itself, pytest checks a law with fewer of them than `python dev.py test`, whose profile is `laws`.
"""

import gc
import itertools
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
    """Every worker, which gets one part of the list, begins with some of the modules that take long."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    long = {item: bool(LONG.intersection(mark.name for mark in item.iter_markers())) for item in items}
    slow, quick = ([item for item in items if long[item] == kind] for kind in (True, False))
    modules = [list(part) for _, part in itertools.groupby(slow, key=lambda item: item.path)]
    parts = []
    for worker in range(workers):
        parts += [item for module in modules[worker::workers] for item in module]
        parts += quick[worker * len(quick) // workers : (worker + 1) * len(quick) // workers]
    items[:] = parts


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
