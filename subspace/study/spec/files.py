"""A `Study` as a TOML or JSON file and back, and single values of it from the command line.

Unknown keys and values of another type are errors that name them; nothing is guessed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import msgspec
import tomlkit
from tomlkit.exceptions import TOMLKitError

from subspace.study.entries.lookup import nearest
from subspace.study.spec.presets import preset
from subspace.study.spec.study import Study, Training

TABLES = {"train": Training}


def read(path: Path | str) -> dict[str, Any]:
    """The table in a .toml or .json file, or of a preset, and a name; ValueError if it is none, OSError as reading has.

    The name is the file's, or the preset's with a hyphen: talk-accuracy.
    """
    path = Path(path)
    name = path.stem
    if not path.suffix and not path.exists():
        name, path = path.as_posix().replace("/", "-"), preset(path.as_posix())
    if path.suffix not in (".toml", ".json"):
        raise ValueError(f"a study's file must end in .toml or .json, got {str(path)!r}")
    try:
        text = path.read_text(encoding="utf-8")
        table = json.loads(text) if path.suffix == ".json" else tomlkit.parse(text).unwrap()
    except (TOMLKitError, ValueError) as error:
        raise ValueError(f"{path} must be {path.suffix[1:].upper()}, got: {error}") from None
    if not isinstance(table, dict):
        raise ValueError(f"{path} must be a table of keys and values, got a {type(table).__name__}")
    return {"name": name, **table}


def assigned(table: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """The table with values set as by "train.epochs=20", each in TOML; what is no TOML is taken as text."""
    result = json.loads(json.dumps(table))
    for assignment in assignments:
        place, equals, text = assignment.partition("=")
        *tables, key = place.strip().split(".")
        if not equals or not all([*tables, key]):
            raise ValueError(f"a setting must be KEY=VALUE, such as train.epochs=20, got {assignment!r}")
        inner = result
        for name in tables:
            inner = inner.setdefault(name, {})
            if not isinstance(inner, dict):
                raise ValueError(f"{name} must be a table to set {place} in, got {inner!r}")
        inner[key] = value(text.strip())
    return dict(result)


def value(text: str) -> Any:
    """A TOML value; the text itself where it is none.

    >>> value("20"), value("[0.1, 1e-3]"), value("cpu")
    (20, [0.1, 0.001], 'cpu')
    """
    try:
        return tomlkit.value(text).unwrap()
    except (TOMLKitError, ValueError):
        return text


def study(table: Mapping[str, Any]) -> Study:
    """The study that a table says; ValueError naming what is not a key, with the nearest, or not such a value."""
    known(table, Study, "")
    try:
        return msgspec.convert(dict(table), Study)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        place = where.rstrip("`").lstrip(".")
        raise ValueError(f"{place}: {what}" if place else what) from None


def known(table: Mapping[str, Any], of: type, place: str) -> None:
    """ValueError for a key that is no field of the dataclass."""
    names = [field.name for field in fields(of)]
    for key, entry in table.items():
        if key not in names:
            among = ", ".join(names)
            raise ValueError(f"{place or 'a study'} must have keys among {among}, got {key!r}{nearest(key, names)}")
        if key in TABLES and isinstance(entry, Mapping):
            known(entry, TABLES[key], f"{place}.{key}".lstrip("."))


def table(value: Study) -> dict[str, Any]:
    """A study as a table of plain values that `study` takes back; what is None is left out."""
    plain: dict[str, Any] = asdict(value)  # msgspec leaves defaults out of what it has made itself
    return {key: inner for key, inner in plain.items() if inner is not None}


def toml(value: Study) -> str:
    """A study as TOML."""
    return tomlkit.dumps(table(value))
