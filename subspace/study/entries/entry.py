"""What an entry of a study file stands for: a name, and the options that go with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from subspace.study.entries.lookup import import_path

Entry: TypeAlias = str | dict[str, Any]


@dataclass(frozen=True)
class Choice:
    """What an entry means: a name, and the options that go with it, by name."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash(str(self))

    def __str__(self) -> str:
        return ", ".join([self.name, *(f"{name}={value}" for name, value in sorted(self.options.items()))])

    @classmethod
    def of(cls, entry: Entry | Choice | Callable[..., Any], what: str) -> Choice:
        """The choice an entry stands for; for a function or class, that of its import path.

        Raises ValueError, naming `what` it was to be, for a function that cannot be imported, a table without a name
        and options that are not JSON.
        """
        if isinstance(entry, Choice):
            return entry
        if callable(entry):
            return cls(import_path(entry, what))
        if not isinstance(entry, str | Mapping):
            raise ValueError(f"{what} must be a name or a table with one, got {entry!r}")
        options = {"name": entry} if isinstance(entry, str) else dict(entry)
        name = options.pop("name", None)
        if not isinstance(name, str) or not name:
            raise ValueError(f"{what} must be a name or a table with one, got {entry!r}")
        try:
            canonical(options)
        except (TypeError, ValueError) as error:
            raise ValueError(f"options of {name} must be numbers, text and lists or tables of them: {error}") from None
        return cls(name, options)


def listed(value: Any) -> tuple[Any, ...]:
    """The entries of a list, or the one that stands for a list of itself.

    >>> listed("dctps"), listed([0.1, 0.01]), listed(0.01)
    (('dctps',), (0.1, 0.01), (0.01,))
    """
    return tuple(value) if isinstance(value, list | tuple | set | range) else (value,)


def canonical(value: object) -> str:
    """The one JSON text of a value: sorted keys, no blanks; ValueError for numbers that JSON does not have."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
