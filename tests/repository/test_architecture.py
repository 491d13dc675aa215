"""The shape of the package: imports point down, files are small, public names are documented."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import subspace

ROOT = Path(subspace.__file__).parent
LAYERS = [
    ["random", "linear_map", "patches", "places", "table", "version"],
    ["transforms", "fixed", "rows"],
    ["products.*", "products"],
    ["offsets.base"],
    ["offsets.*", "offsets"],
    ["embeddings.base"],
    ["embeddings.*", "embeddings"],
    ["parametrization"],
    ["normal_form"],
    ["structured"],
    ["description", "fingerprint", "schema", "sealed", "targets", "meta"],
    ["methods.*", "methods"],
    ["summary", "checkpoint", "initialize", "recipes", "routes"],
    ["__init__"],
    ["study.*", "study"],
]
MODULES = {
    str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}


def layer(module: str) -> int:
    wanted = {module, f"{module.split('.')[0]}.*"} if "." in module else {module}
    levels = [level for level, names in enumerate(LAYERS) if module in names]
    return (levels or [level for level, names in enumerate(LAYERS) if wanted & set(names)])[0]


def imported(path: Path) -> set[str]:
    """The modules of this package that a file imports, wherever it does so."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "subspace":
            inner = node.module.removeprefix("subspace").lstrip(".")
            submodules = {f"{inner}.{alias.name}".lstrip(".") for alias in node.names} & MODULES.keys()
            names |= submodules or {inner or "__init__"}
    return names


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    for other in imported(MODULES[module]):
        same_folder = module.split(".")[0] == other.split(".")[0] and "." in module + other
        assert layer(other) < layer(module) or (layer(other) == layer(module) and same_folder), other


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("study")])
def test_the_study_uses_public_names_only(module):
    for other in imported(MODULES[module]):
        assert other.startswith("study") or other in ("__init__", "offsets", "embeddings", "recipes", "methods"), other


def test_only_the_parametrization_knows_parametrizes_internals():
    for module, path in MODULES.items():
        text = path.read_text()
        assert module == "parametrization" or "parametrize._" not in text, module


@pytest.mark.parametrize("module", MODULES)
def test_files_are_small_and_documented(module):
    text = MODULES[module].read_text()
    assert len(text.splitlines()) <= 250
    assert ast.get_docstring(ast.parse(text))


def test_public_names_are_documented():
    for name in subspace.__all__:
        public = getattr(subspace, name)
        assert inspect.getdoc(public), name
    for plugins in (subspace.offsets, subspace.embeddings):
        for name in plugins.__all__:
            assert vars(getattr(plugins, name))["__doc__"], name


def test_the_study_is_not_imported_with_the_package():
    import subprocess
    import sys

    code = "import sys, subspace; print([m for m in sys.modules if m.startswith(('subspace.study', 'pandas', 'rich'))])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
