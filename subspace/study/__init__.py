"""The application on top: comparing methods on real data. Needs `pip install "torch-subspace[study]"`.

    from subspace import study
    table = study.run(study.Study(methods=("ordinary", "dctps"), densities=(0.01,), seeds=3))

Its rooms, each of which imports only those above it:

entries    what a name in a study file stands for          methods    what is compared
data       what is trained and tested on                   spec       what a study asks for: its runs
models     the networks                                    results    what is kept of runs, and tables of it
                                                           training   one run
reports    tables, figures and the page                    execution  all runs, wherever they are trained
cli        the commands

It uses public names of `subspace` only, and nothing of `subspace` imports it. What the names of this package need is
loaded when they are asked for, as worker processes import it too.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from subspace.study.entries.entry import Choice
    from subspace.study.execution.callbacks import Callback
    from subspace.study.execution.dimension import dimension
    from subspace.study.execution.plan import report, run
    from subspace.study.methods import Method
    from subspace.study.results.store import Store
    from subspace.study.spec.study import Run, Study, Training

HOMES = {
    "Callback": "execution.callbacks",
    "Choice": "entries.entry",
    "Method": "methods",
    "Run": "spec.study",
    "Store": "results.store",
    "Study": "spec.study",
    "Training": "spec.study",
    "dimension": "execution.dimension",
    "report": "execution.plan",
    "run": "execution.plan",
}
__all__ = ["Callback", "Choice", "Method", "Run", "Store", "Study", "Training", "dimension", "report", "run"]


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{HOMES[name]}"), name)
