"""The recipes of docs/extending.md, followed: their files written and their changes made in a copy of the checkout."""

from __future__ import annotations

import os
import re
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
COMMANDS = """
import shlex, sys
import pytest
from subspace.study.cli.app import app
for line in sys.argv[1:]:
    program, *arguments = shlex.split(line.removeprefix("$ ").removeprefix("python -m "))
    try:
        status = pytest.main(arguments) if program == "pytest" else app([*arguments, "--launcher", "inline"])
    except SystemExit as end:
        status = end.code
    assert status == 0, f"{line}: {status}"
    print("done:", line)
"""  # in one process, which imports torch once; that workers find a module of one's own is a law of the launchers

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


def follow(recipe: str, folder: Path) -> list[str]:
    """Write a recipe's files and make its changes in a copy of the checkout; the commands that it then runs."""
    commands = []
    for language, name, block in BLOCK.findall(RECIPES[recipe]):
        text, place = textwrap.dedent(block), folder / name
        if language == "console":
            commands += text.splitlines()
        elif language == "diff":
            place.write_text(changed(place.read_text(), text))
        else:
            assert not place.exists()
            place.write_text(text)
    return commands


def run(commands: list[str], folder: Path) -> None:
    """Run commands of the page in the copy; each must succeed."""
    environment = os.environ | {"PYTHONPATH": str(folder), "SUBSPACE_COSTS": "typical", "PYTEST_ADDOPTS": "-n0"}
    command = [sys.executable, "-c", COMMANDS, *commands]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    done = [line.removeprefix("done: ") for line in ended.stdout.splitlines() if line.startswith("done: ")]
    assert (ended.returncode, done) == (0, commands), ended.stdout[-3000:] + ended.stderr[-3000:]


def test_there_is_a_recipe_for_every_kind_of_plug_in():
    kinds = ["An offset", "An embedding", "A saliency", "A route", "A data set", "A method of the study"]
    assert list(RECIPES) == kinds


def test_the_recipes_do_what_they_say(tmp_path):
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    commands = [follow(recipe, tmp_path) for recipe in RECIPES]
    assert all(commands)
    run([line for each in commands for line in each], tmp_path)
