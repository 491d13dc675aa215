"""The shape of the package: imports point down, no module is hidden by a function, public names are documented."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

import subspace

ROOT = Path(__file__).parents[2]
NOT_LISTED = ("study", "triton", "native_", "__main__")  # of which no module can be imported everywhere
MODULES = [
    module.name
    for module in pkgutil.walk_packages(subspace.__path__, "subspace.")
    if not any(part.startswith(NOT_LISTED) for part in module.name.split("."))
]


def test_imports_keep_the_contracts(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert lint_imports(cache_dir=None) == 0


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_found_under_its_name(name):
    parent, _, last = name.rpartition(".")
    module = importlib.import_module(name)
    assert getattr(importlib.import_module(parent), last) is module  # not a function of that name
    assert last not in sys.stdlib_module_names
    assert inspect.getdoc(module)


def test_the_top_level_shows_the_ideas():
    shown = {path.stem for path in Path(subspace.__file__).parent.iterdir() if not path.stem.startswith(("_", "."))}
    ideas = {
        "recipes",
        "offsets",
        "embeddings",
        "methods",
        "parametrization",
        "products",
        "checkpoint",
        "deltas",
        "tune",
        "study",
        "integrations",
    }
    assert shown - {"py"} == ideas


def test_public_names_are_documented():
    for package in (subspace, subspace.methods, subspace.offsets, subspace.embeddings, subspace.products):
        for name in package.__all__:
            public = getattr(package, name)
            if inspect.ismodule(public) or inspect.isfunction(public) or isinstance(public, type):
                assert vars(public)["__doc__"] if isinstance(public, type) else public.__doc__, name


@pytest.mark.slow
def test_the_study_and_the_shells_are_not_imported_with_the_package():
    apart = ("subspace.study", "subspace.integrations", "pandas", "rich", "transformers", "lightning")
    code = f"import sys, subspace; print([m for m in sys.modules if m.startswith({apart})])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
