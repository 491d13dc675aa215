"""Where a run was done says what a configuration does not, at no cost to the run."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from subspace.study.execution.environment import environment


def test_it_is_json_and_says_what_this_process_has():
    here = environment()
    assert json.loads(json.dumps(here)) == here
    assert (here["torch"], here["numpy"]) == (torch.__version__, np.__version__)
    assert here["threads"] == torch.get_num_threads()
    assert 1 <= here["cores"] <= os.cpu_count()
    assert here["device"] == "cpu"
    assert all(here.values())


def test_no_global_generator_is_moved():
    before = torch.get_rng_state()
    environment()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
@pytest.mark.parametrize(("wanted", "said"), [("0", "switched off by SUBSPACE_NATIVE=0"), ("baseline", "baseline")])
def test_it_tells_which_compiled_kernels_are_used(wanted, said):
    code = "from subspace.study.execution.environment import environment; print(environment()['kernels'])"
    env = {**os.environ, "SUBSPACE_NATIVE": wanted}
    printed = subprocess.check_output([sys.executable, "-c", code], text=True, env=env).strip()
    assert printed == said or (wanted == "baseline" and printed.startswith("not built"))
