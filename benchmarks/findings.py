"""The tables of FINDINGS.md, from the runs in results/: `python -m benchmarks.findings` writes them anew.

A table stands between `<!-- table: STUDIES; PLACE; WHAT -->` and `<!-- end -->`. STUDIES are folders of results/, with
blanks between; PLACE is a data set and a network, as "digits, resnet20"; WHAT is

accuracy     test accuracy in per cent, mean and standard deviation over the seeds, a row per method, a column per size
talk         the summary table of the talk: the change against dense, compute and storage at the smallest size
any column   of `study.summary.summary_table`, as theta: its figures

`--collect subspace-study` takes over from there, before that, what is kept in results/ of every study that is there:
its runs.csv, study.toml and the pictures that the page shows.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from PIL import Image

from subspace.study.grids import talk_grid
from subspace.study.printed import short, size, spread
from subspace.study.schema import read
from subspace.study.summary import at, places, sizes, summary_table

HERE = Path(__file__).parent
PAGE, RESULTS = HERE / "FINDINGS.md", HERE / "results"
TABLE = re.compile(r"(<!-- table: ([^;]+); ([^;]+); (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
PICTURE = re.compile(r"\]\(results/([^/)]+)/([^/)]+\.png)\)")


def summary(studies: Iterable[str], place: str) -> pd.DataFrame:
    """Means over seeds of all runs of the studies on one data set and network; ValueError where there are none."""
    runs = pd.concat([read(RESULTS / study / "runs.csv", "runs") for study in studies])
    found = dict(places(summary_table(runs)))
    if place not in found:
        raise ValueError(f"place must be one of {'; '.join(found)}, got {place!r}")
    return found[place]


def markdown(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown, its first column to the left."""
    heads = list(heads)
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def by_size(table: pd.DataFrame, what: str) -> str:
    """A row per method, a column per size; a method without a size has its one figure in the first column."""
    every = sizes(table)
    heads = [size(at(table, one).iloc[0]) for one in every]

    def cell(row: pd.DataFrame) -> str:
        if not len(row):
            return ""
        line = row.iloc[0]
        return spread(line["mean"], line["std"]) if what == "accuracy" else short(line[what])

    rows = []
    for (label, _), own in table.groupby(["label", "options"], sort=False):
        here = [own] if own[["density", "dim"]].isna().all(axis=None) else [at(own, one) for one in every]
        rows.append([f"{label}", *(cell(row) for row in here), *[""] * (len(every) - len(here))])
    return markdown(["method", *heads], rows)


def made(studies: str, place: str, what: str) -> str:
    """The table of a marker's three parts."""
    table = summary(studies.split(), place)
    if what != "talk":
        return by_size(table, what)
    grid = talk_grid(table, place)
    return markdown([head for head, _ in grid.heads], [[cell.text for cell in row] for row in grid.rows])


def renewed(page: str) -> str:
    """The page with every table as the results have it."""
    return TABLE.sub(lambda found: found[1] + made(*found.group(2, 3, 4)) + found[5], page)


def collect(out: Path) -> None:
    """Take over into results/ what the page needs of the studies in `out`; a picture in 256 colours."""
    wanted: dict[str, set[str]] = {}
    page = PAGE.read_text()
    for found in TABLE.finditer(page):
        for study in found[2].split():
            wanted.setdefault(study, set())
    for study, picture in PICTURE.findall(page):
        wanted.setdefault(study, set()).add(picture)
    for study, pictures in wanted.items():
        source, target = out / study, RESULTS / study
        if not source.is_dir():
            continue
        target.mkdir(parents=True, exist_ok=True)
        for name in ("runs.csv", "study.toml"):
            shutil.copyfile(source / name, target / name)
        for name in pictures:
            content = io.BytesIO()
            Image.open(source / name).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(content, "png")
            (target / name).write_bytes(content.getvalue())


def main() -> None:
    """Collect, if asked to, and write the page's tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collect", type=Path, help="the --out of `subspace study`")
    options = parser.parse_args()
    if options.collect:
        collect(options.collect)
    PAGE.write_text(renewed(PAGE.read_text()))


if __name__ == "__main__":
    main()
