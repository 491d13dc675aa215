"""A `Study` as a TOML or JSON file and back, and single values of it from the command line.

Unknown keys and values of another type are errors that name them; nothing is guessed. Reading a file imports nothing;
building the runs of its study imports the methods that it names by an import path, and training all else.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import msgspec
import tomlkit
from tomlkit.exceptions import TOMLKitError

from subspace.study.entries.entry import listed
from subspace.study.entries.lookup import require_known
from subspace.study.spec.presets import preset
from subspace.study.spec.study import AXES, Study, Training

TABLES = {"train": Training}
LISTS = ("methods", "models", "data", *AXES.values())


def load(asked: Study | Mapping[str, Any] | Path | str, settings: Iterable[str] = ()) -> Study:
    """A study from a table of its fields, or from the path of a file or the name of a preset, with settings.

    Raises ValueError for what is no study, and OSError where a file cannot be read.
    """
    if isinstance(asked, Study):
        return asked
    try:
        return study(assigned(asked if isinstance(asked, Mapping) else read(asked), settings))
    except RecursionError:
        raise ValueError("a study must be nested less deeply, got too many levels") from None


def read(path: Path | str) -> dict[str, Any]:
    """The table in a .toml or .json file, or of a preset, and a name: the file's, or the preset's with a hyphen.

    Raises ValueError if it is none, and OSError where it cannot be read.
    """
    if "\0" in str(path):
        raise ValueError(f"a study's file must be a path, got {str(path)!r}")
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


def assigned(table: Mapping[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """The table with values set as by "train.epochs=20", each in TOML; what is no TOML is text.

    A list may be given without brackets, and its words without quotes, as "methods=dctps,snip".
    """
    result = copy.deepcopy(dict(table))
    for setting in settings:
        place, equals, text = setting.partition("=")
        *tables, key = place.strip().split(".")
        if not equals or not all([*tables, key]):
            raise ValueError(f"a setting must be KEY=VALUE, such as train.epochs=20, got {setting!r}")
        inner = result
        for name in tables:
            inner = inner.setdefault(name, {})
            if not isinstance(inner, dict):
                raise ValueError(f"{name} must be a table to set {place} in, got {inner!r}")
        inner[key] = words(text.strip()) if key in LISTS and not tables else value(text.strip())
    return result


def value(text: str) -> Any:
    """A TOML value; the text itself where it is none.

    >>> value("20"), value("[0.1, 1e-3]"), value("cpu")
    (20, [0.1, 0.001], 'cpu')
    """
    try:
        return tomlkit.value(text).unwrap()
    except (TOMLKitError, ValueError):
        return text


def words(text: str) -> list[Any]:
    """The values of a list with or without its brackets: all of them in TOML, as tables must be, or words.

    >>> words("dctps, snip"), words("0.1,0.01"), words("[{name = 'rigl', delta_t = 5}]")
    (['dctps', 'snip'], [0.1, 0.01], [{'name': 'rigl', 'delta_t': 5}])
    """
    for found in (value(text), value(f"[{text}]")):
        if isinstance(found, list):
            return found
    return [value(word.strip()) for word in text.split(",") if word.strip()]


def study(table: Mapping[str, Any]) -> Study:
    """The study that a table says; ValueError naming what is not a key, with the nearest, or not such a value."""
    require_fields(table, Study, "")
    try:
        return msgspec.convert(lists(table), Study)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        place = where.rstrip("`").lstrip(".")
        raise ValueError(f"{place}: {what}" if place else what) from None


def lists(table: Mapping[str, Any]) -> dict[str, Any]:
    """The table with a list where one value stands for it."""
    return {key: list(listed(entry)) if key in LISTS else entry for key, entry in table.items()}


def require_fields(table: Mapping[str, Any], of: type, place: str) -> None:
    """ValueError for a key that is no field of the dataclass."""
    require_known(table, [field.name for field in fields(of)], f"{place or 'a study'} must have keys among")
    for key, entry in table.items():
        if key in TABLES and isinstance(entry, Mapping):
            require_fields(entry, TABLES[key], f"{place}.{key}".lstrip("."))


def toml(study: Study) -> str:
    """A study as TOML, every value of it; what is None is left out."""
    table: dict[str, Any] = asdict(study)  # msgspec leaves defaults out of what it has made itself
    return tomlkit.dumps({key: inner for key, inner in table.items() if inner is not None})
