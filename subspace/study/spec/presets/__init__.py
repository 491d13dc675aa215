"""Studies that come with the package, by name: "talk/accuracy" is talk/accuracy.toml here.

A preset is a study's file whose first line, a comment, says what it asks and what it takes. A new one is a file.

first      what runs when no study is named, and its like on LeNet-5
talk       the experiments of Price and Tanner's talk on "Dense for the Price of Sparse" (ICML 2021), for two cores;
           those that end in -full are at its scale, and need its data and GPUs
questions  what Price and Tanner leave open, at small scale
fashion    the same on Fashion-MNIST, whose files are to be had first
"""

from __future__ import annotations

from pathlib import Path

from subspace.study.entries.lookup import nearest

FOLDER = Path(__file__).parent


def presets() -> dict[str, str]:
    """What every preset says of itself, by name."""
    paths = sorted(FOLDER.glob("*/*.toml"))
    return {path.relative_to(FOLDER).with_suffix("").as_posix(): _first_line(path) for path in paths}


def preset(name: str) -> Path:
    """The file of a preset; ValueError, naming the nearest, if there is none of that name."""
    known = presets()
    if name not in known:
        kinds = f"a .toml or .json file or a preset, such as {next(iter(known))}"
        raise ValueError(f"a study must be {kinds}, got {name!r}{nearest(name, known)}")
    return FOLDER / f"{name}.toml"


def _first_line(path: Path) -> str:
    return path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
