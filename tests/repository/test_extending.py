"""The recipes of docs/extending.md, followed: their files written and their changes made in a copy of the checkout."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text()
RECIPES = dict(re.findall(r"^## \d+\. ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
BLOCK = re.compile(r'^ *```(\w+)(?: title="([^"]+)")?\n(.*?)^ *```$', re.DOTALL | re.MULTILINE)
COPIED = ("subspace", "tests", "pyproject.toml")
PROGRAMS = {"python": [sys.executable], "subspace": [sys.executable, "-m", "subspace.study.cli"]}

pytestmark = pytest.mark.slow


def changed(text: str, diff: str) -> str:
    """The text with every part of the diff, between lines of @@, made where its old lines stand, once."""
    for part in diff.split("@@\n"):
        lines = part.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if line[0] in " -")
        new = "".join(line[1:] for line in lines if line[0] in " +")
        assert f"\n{text}".count(f"\n{old}") == 1, old
        text = f"\n{text}".replace(f"\n{old}", f"\n{new}")[1:]
    return text


def run(line: str, folder: Path) -> None:
    """Run a command of the page in the copy; it must succeed."""
    program, *arguments = shlex.split(line.removeprefix("$ "))
    environment = os.environ | {"PYTHONPATH": str(folder), "SUBSPACE_COSTS": "typical"}
    command = [*PROGRAMS[program], *arguments]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]


def test_there_is_a_recipe_for_every_kind_of_plug_in():
    kinds = ["An offset", "An embedding", "A saliency", "A route", "A data set", "A method of the study"]
    assert list(RECIPES) == kinds


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_does_what_it_says(recipe, tmp_path):
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    commands = 0
    for language, name, block in BLOCK.findall(RECIPES[recipe]):
        text, place = textwrap.dedent(block), tmp_path / name
        if language == "console":
            for line in text.splitlines():
                run(line, tmp_path)
                commands += 1
        elif language == "diff":
            place.write_text(changed(place.read_text(), text))
        else:
            assert not place.exists()
            place.write_text(text)
    assert commands
