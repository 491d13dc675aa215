"""What the source alone does not say: signatures that a decorator changes, docstrings completed on import, examples."""

from __future__ import annotations

import importlib
import inspect
import re
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


class FencedExamples(griffe.Extension):
    """Show what stands between a `>>>` and an empty line as code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Put fences around the examples of a docstring."""
        if obj.docstring is not None:
            text = obj.docstring.value
            obj.docstring.value = re.sub(r"(?:^|(?<=\n\n))(>>> .*?)(?=\n\n|\Z)", r"```pycon\n\1\n```", text, flags=re.DOTALL)


def _parameter(one: inspect.Parameter) -> griffe.Parameter:
    default = None if one.default is one.empty else repr(one.default)
    kind = griffe.ParameterKind(one.kind.description)
    return griffe.Parameter(one.name, annotation=one.annotation, kind=kind, default=default)
