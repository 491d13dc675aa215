"""The compiled kernels where the system gives no threads."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_without_threads_all_parts_are_done(tmp_path):
    source, driver = Path(__file__).with_name("native_threads_driver.cpp"), tmp_path / "driver"
    flags = "-std=c++17 -O1 -D_GNU_SOURCE -Wall -Wextra -Werror -pthread -rdynamic"
    subprocess.run(["g++", *flags.split(), source, "-o", driver, "-ldl"], check=True)
    done = subprocess.run([driver], capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stdout + done.stderr)
