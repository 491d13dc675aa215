"""Find what a name stands for: a known thing, or a Python object by its import path, as mypkg.mymodule:build."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

Thing = TypeVar("Thing")


def lookup(name: str, known: Mapping[str, Thing], what: str, importable: bool = False) -> Thing:
    """The known thing of that name or, if it is importable, the object at MODULE:NAME.

    Raises ValueError with the known names and the nearest of them; `what` is what the name was to be one of.
    """
    if importable and ":" in name and name not in known:
        return import_object(name, what)  # type: ignore[no-any-return]
    also = " or an import path MODULE:NAME" if importable else ""
    require_known([name], known, f"{what} must be one of", also)
    return known[name]


def require_known(names: Iterable[str], known: Collection[str], what: str, also: str = "") -> None:
    """ValueError, "{what} {known} {also}, got ...", for a name that is not among the known ones."""
    for name in names:
        if name not in known:
            raise ValueError(f"{what} {', '.join(known) or 'none'}{also}, got {name!r}{nearest(name, known)}")


def nearest(name: str, known: Collection[str]) -> str:
    """The end of a sentence on a name that is not known: the one that may have been meant."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def import_path(thing: Any, what: str) -> str:
    """MODULE:NAME of a function or class, by which other processes find it.

    Raises ValueError for one that they cannot import: of a notebook or script, inside a function, or without a name;
    `what` is what it was to be.
    """
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", "")
    found: Any = None if module == "__main__" else sys.modules.get(module or "")
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is not thing:
        raise ValueError(
            f"{what} must be one that worker processes can import, got {name or repr(thing)} of {module}: "
            "put it in a module of its own, and it can be named by MODULE:NAME"
        )
    return f"{module}:{name}"


def import_object(path: str, what: str) -> Any:
    """The object at MODULE:NAME, also from the present directory; importing runs the module.

    Raises ValueError, with what the import raised, if there is none; `what` is what it was to be.
    """
    module, _, name = path.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:  # a module may raise anything
        raise ValueError(f"{what} must be an import path MODULE:NAME, got {path!r}: {error}") from error
    return found
