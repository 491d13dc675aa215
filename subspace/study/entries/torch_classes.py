"""Optimizers and schedules by the names of torch's own classes."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

from subspace.study.entries.entry import Choice
from subspace.study.entries.lookup import nearest


def made(of: ModuleType, choice: Choice, *arguments: Any, **more: Any) -> Any:
    """The chosen class of the module, called. ValueError for a name that it does not have, or what the call says."""
    known = [name for name, value in vars(of).items() if inspect.isclass(value) and not name.startswith("_")]
    if choice.name not in known:
        raise ValueError(f"{of.__name__} must have {choice.name!r}, got none of that name{nearest(choice.name, known)}")
    try:
        return getattr(of, choice.name)(*arguments, **more, **choice.options)
    except TypeError as error:
        named = f"{of.__name__}.{choice.name}"
        raise ValueError(f"options of {choice.name} must be those of {named}, got: {error}") from error
