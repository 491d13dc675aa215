"""What MkDocs is told beside mkdocs.yml: benchmarks/README.md and the results that pages show are part of the site.

They stay where the benchmark commands write them, and links between them and the pages work in the checkout too.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = "benchmarks/README.md"
SHOWN = re.compile(r"\]\((?:(?:\.\./)+benchmarks/)?(results/[^)#\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page of benchmarks and the results that it and the other pages link to."""
    pages = [ROOT / BENCHMARKS, *(ROOT / "docs").rglob("*.md")]
    shown = {f"benchmarks/{path}" for page in pages for path in SHOWN.findall(page.read_text())}
    for name in [BENCHMARKS, *sorted(shown)]:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Links of the checkout, where pages are in docs/, as links of the site, where they are at its root."""
    if page.file.src_uri == BENCHMARKS:
        return markdown.replace("](../docs/", "](../")
    up = "../" * page.file.src_uri.count("/")
    return markdown.replace(f"]({up}../benchmarks/", f"]({up}benchmarks/")
