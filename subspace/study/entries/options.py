"""The options of an entry against the parameters of the function they are for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from subspace.study.entries.entry import Choice
from subspace.study.entries.lookup import nearest


def parameters(function: Callable[..., Any]) -> tuple[set[str], bool]:
    """The names that can be given to a function as keywords, and whether it takes any other as well."""
    try:
        found = inspect.signature(function).parameters.values()
    except ValueError:  # of what is not written in Python
        return set(), True
    named = {p.name for p in found if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return named, any(p.kind == p.VAR_KEYWORD for p in found)


def called(function: Callable[..., Any], choice: Choice, facts: Mapping[str, Any] | None = None) -> Any:
    """What the function returns for its `arguments`."""
    return function(**arguments(function, choice, facts or {}))


def arguments(function: Callable[..., Any], choice: Choice, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The choice's options, and those of the facts that the function has a parameter for.

    ValueError, naming the nearest, for an option that it has no parameter for, or one that it needs and is not given.
    """
    known, any_other = parameters(function)
    offered = {name: fact for name, fact in facts.items() if name in known}
    free = known - {"key"}
    if unknown := [name for name in choice.options if name not in free and not any_other]:
        permitted = ", ".join(sorted(free)) or "none"
        raise ValueError(f"options of {choice.name} must be {permitted}, got {unknown[0]!r}{nearest(unknown[0], free)}")
    given = {**offered, **choice.options}
    try:
        inspect.signature(function).bind(**given)
    except TypeError as error:
        raise ValueError(f"{choice.name} must be given what it needs, got {error}") from None
    except ValueError:
        pass
    return given
