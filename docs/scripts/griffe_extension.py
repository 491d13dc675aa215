"""What the source alone does not say: signatures that a decorator changes, and docstrings completed on import."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import griffe


class ImportedFunctions(griffe.Extension):
    """Show a decorated function, and `structured`, as they are once they are imported."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Take signature and docstring from the object."""
        if not (func.parent and func.parent.is_module) or not (func.decorators or func.name == "structured"):
            return
        found = getattr(importlib.import_module(func.parent.path), func.name)
        func.parameters = griffe.Parameters(*map(_parameter, inspect.signature(found).parameters.values()))
        if func.docstring is not None:
            func.docstring.value = inspect.getdoc(found) or ""


def _parameter(one: inspect.Parameter) -> griffe.Parameter:
    default = None if one.default is one.empty else repr(one.default)
    kind = griffe.ParameterKind(one.kind.description)
    return griffe.Parameter(one.name, annotation=one.annotation, kind=kind, default=default)
