"""The site builds without a warning and without a network; its pages show what there is."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from matplotlib import pyplot as plt

import subspace
from subspace.products.routes import table_of_routes

ROOT = Path(__file__).resolve().parents[2]
PAGES = {path.relative_to(ROOT / "docs").as_posix(): path.read_text() for path in (ROOT / "docs").rglob("*.md")}
PACKAGES = (subspace, subspace.offsets, subspace.embeddings, subspace.methods, subspace.budgets, subspace.products)
README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "benchmarks" / "results"
NOT_LISTED = {"LINEAR", "ROUTES", "Objective", "Saliency", "Scores", "Supports"}  # values and types of arguments
ENTRY = re.compile(r"^::: ([\w.]+)$", re.MULTILINE)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site; no proxy leads out of this process."""
    folder = tmp_path_factory.mktemp("site")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    ended = subprocess.run(command, cwd=ROOT, env=os.environ | nowhere, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return folder


@pytest.mark.slow
def test_the_site_asks_for_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(PAGES)
    asked = r'<(?:script|img|link|iframe)\b[^>]*?\b(?:src|href)="(?:https?:)?//[^"]*"'
    for page in pages:
        assert not re.findall(asked, page.read_text()), page


@pytest.mark.slow
def test_every_page_is_in_the_navigation(site):
    home = (site / "index.html").read_text()
    for name in PAGES:
        target = re.sub(r"(index)?\.md$", "", name)
        assert f'href="{target}{"/" if target else "."}"' in home, name


@pytest.mark.slow
def test_the_pictures_are_those_that_the_pages_show():
    spec = importlib.util.spec_from_file_location("pictures", ROOT / "docs" / "scripts" / "pictures.py")
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    shown = {name for page in PAGES.values() for name in re.findall(r"\(pictures/(\w+)\.png\)", page)}
    assert shown == set(pictures.PICTURES) == {path.stem for path in (ROOT / "docs" / "pictures").iterdir()}
    for draw in pictures.PICTURES.values():
        plt.close(draw())


def test_every_public_name_is_in_the_api():
    listed = {name.rpartition(".")[2] for page in PAGES.values() for name in ENTRY.findall(page)}
    public = {name for package in PACKAGES for name in getattr(package, "__all__", ())}
    modules = {name for name in public if hasattr(getattr(subspace, name, None), "__path__")}
    assert public - modules - listed - {"budgets", "parametrization", "recipes", "tune"} == NOT_LISTED


def test_the_table_of_routes_is_that_of_the_code():
    assert table_of_routes() in PAGES["fast-products.md"]


def test_the_readme_is_short_and_its_links_lead_somewhere():
    assert len(README.splitlines()) <= 120
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / target).exists(), target


def test_the_figures_of_the_readme_were_measured():
    lines = (RESULTS / "targets" / "avx512.txt").read_text().splitlines()

    def times(case):
        (line,) = (line for line in lines if line.startswith("native ") and case in line)
        return float(re.search(r" ([\d.]+) x ", line)[1])

    assert f"{times('linear 4096^2, p = 1e-3, over nn.Linear'):.0f}x for a 4096 x 4096 layer" in README
    assert f"{times('resnet50 step, over NCHW'):.1f}x for a step of ResNet50" in README
    memory = pd.read_csv(RESULTS / "memory" / "table.csv")
    (mlp,) = memory[(memory["case"] == "mlp") & ~memory["wheels only"]].to_dict("records")
    assert f"{mlp['peak MB'] / 1000:.2f} GB" in README
    assert f"{mlp['dense MB'] / 1000:.0f} GB" in README
