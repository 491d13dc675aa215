"""Names of a checkpoint's tensors in a model that has them at another place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

Names = str | Mapping[str, str | None]
Value = TypeVar("Value")


class Renamed:
    """The file's names, as they are in a model: a prefix before each, or other beginnings, the longest that fits.

    A beginning that is None leaves its tensors out; a name without any that fits stays as it is.
    """

    def __init__(self, names: Names) -> None:
        self.beginnings = {"": names} if isinstance(names, str) else {"": "", **names}

    def __call__(self, name: str) -> str | None:
        """The name in the model; None for a tensor that is left out."""
        old = max((old for old in self.beginnings if name.startswith(old)), key=len)
        new = self.beginnings[old]
        return None if new is None else new + name[len(old) :]

    def of_keys(self, by_name: Mapping[str, Value]) -> dict[str, Value]:
        """The entries by their names in the model; raises ValueError if two have one name."""
        renamed: dict[str, Value] = {}
        for name, value in by_name.items():
            new = self(name)
            if new in renamed:
                raise ValueError(f"prefix must give each tensor a name of its own, got {new} twice")
            if new is not None:
                renamed[new] = value
        return renamed

    def reach(self, name: str) -> bool:
        """Whether a tensor of the model has a name that one of the file could have."""
        left_out = any(new is None and name.startswith(old) for old, new in self.beginnings.items())
        return not left_out and any(new is not None and name.startswith(new) for new in self.beginnings.values())
