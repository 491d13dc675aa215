"""The application on top: comparing methods on real data. Needs `pip install "torch-subspace[study]"`.

    from subspace import study
    table = study.run(study.Study(methods=("ordinary", "dctps"), densities=(0.01,), seeds=3))

Uses public names of `subspace` only, and nothing of `subspace` imports it. What these names need is loaded when they
are asked for, as worker processes import this package too.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from subspace.study.callbacks import Callback
    from subspace.study.config import Choice, Run, Study, Training
    from subspace.study.experiment import report, run
    from subspace.study.methods import Method
    from subspace.study.store import Store

__all__ = ["Callback", "Choice", "Method", "Run", "Store", "Study", "Training", "report", "run"]

HOMES = {"Callback": "callbacks", "Method": "methods", "Store": "store", "report": "experiment", "run": "experiment"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{HOMES.get(name, 'config')}"), name)
