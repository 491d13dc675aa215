"""Python objects by the path they are imported by, as mypkg.mymodule:build."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def imported(path: str, what: str) -> Any:
    """The object at MODULE:NAME, also from the present directory; ValueError, naming `what` it was to be, if none."""
    module, _, name = path.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{what} must be an import path MODULE:NAME, got {path!r}: {error}") from error
    return found


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence on a name that is not known: the one that may have been meant."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
