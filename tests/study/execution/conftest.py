"""What tests of launchers share."""

from pathlib import Path

import pytest

from subspace.study.execution.launchers.ray import Ray


@pytest.fixture(scope="package")
def started_ray():
    """A Ray of this machine, one for all tests of this folder: it takes seconds to start."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        with Ray(Path("results"), {}):
            yield
        assert not ray.is_initialized()  # what it started has been stopped
