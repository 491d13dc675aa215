"""What the source alone does not say: signatures that a decorator changes, docstrings completed on import, examples."""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"(?:^|(?<=\n\n))(>>> .*?)(?=\n\n|\Z)", re.DOTALL)


class AsImported(griffe.Extension):
    """Show a decorated function, and `structured`, as they are once they are imported, and examples as code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Complete an object of the package."""
        if isinstance(obj, griffe.Function) and (obj.decorators or obj.name == "structured"):
            home = obj.parent
            if home is not None and home.is_module:
                _take_over(obj, getattr(importlib.import_module(home.path), obj.name))
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub(r"```pycon\n\1\n```", obj.docstring.value)


def _take_over(function: griffe.Function, found: Any) -> None:
    signature = inspect.signature(found)
    function.parameters = griffe.Parameters(*map(_parameter, signature.parameters.values()))
    function.returns = signature.return_annotation
    if function.docstring is not None:
        function.docstring.value = inspect.getdoc(found) or ""


def _parameter(one: inspect.Parameter) -> griffe.Parameter:
    default = None if one.default is one.empty else repr(one.default)
    kind = griffe.ParameterKind(one.kind.description)
    return griffe.Parameter(one.name, annotation=one.annotation, kind=kind, default=default)
