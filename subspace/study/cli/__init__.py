"""The `subspace` command: a file for each of its verbs.

It loads what it needs only when called, as every worker process imports this module too.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line; one sentence where the study's extra is not installed."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its profiler warns of memory that was there before a step
    try:
        from subspace.study.cli.app import app
    except ModuleNotFoundError as missing:
        sys.exit(f"subspace needs {missing.name} for its studies: pip install 'torch-subspace[study]'")
    app()
