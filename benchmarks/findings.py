"""The tables and pictures of docs/findings.md, made of the runs in results/.

`python -m benchmarks.findings` makes them anew.

A table stands between `<!-- table: STUDIES; PLACE; WHAT -->` and `<!-- end -->`. STUDIES are folders of results/, with
blanks between; PLACE is a data set and a network, as "digits, resnet20"; WHAT is

accuracy     test accuracy in per cent, mean and standard deviation over the seeds, a row per method, a column per size
talk         the summary table of Price and Tanner's talk (ICML 2021): the change against dense, compute and storage at
             the smallest size
pairs        by how many points each method is behind the best of a size, over pairs of equal seeds, with Student's 95 %
             interval; "*" where the best is better (`study.results.comparisons`)
rank         of the Jacobian, at the start -> after training, the median over samples and seeds (`subspace jacobian`)
channels     that an offset makes use of (`benchmarks.channels`), a row per layer, the mean over seeds
bits         of the test loss, per character of text: mean and standard deviation over the seeds, as accuracy
files        bits per character of networks at equal bytes (`benchmarks.small_files`; the place is not looked at)
tuners       beside peft's (`benchmarks.tuning`), a row per tuner, a column per budget of a task, which is the place
tuner_costs  the same of what is trained, the time of a step and the memory that is saved for the backward pass
dimension    of `subspace dimension`: a row per data set, network and method (the place is not looked at)
any column   of `study.summary.summary_table`, as theta: its figures

A picture results/STUDY/NAME.png is of accuracy against size where NAME is a place without blanks and commas, as
digits-resnet20; of a sweep (`benchmarks.sweeps`) where it has the name of one; of accuracy against the Jacobian at the
start where it is called rank; of `benchmarks.small_files` where it is called files; of `benchmarks.tuning` where it is
called gains; else one of the study's own.

`--collect subspace-study` first takes over from there what results/ keeps of a study: its runs.csv and study.toml, and
of what `subspace jacobian`, `trainability`, `phase` and `dimension` made of it the pictures and the tables.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from benchmarks import small_files, sweeps, tuning
from subspace.study.reports.analyses.jacobian import rank_figure
from subspace.study.reports.figures import images
from subspace.study.reports.figures.plots import accuracy_against_size
from subspace.study.reports.formats import asked_size, bits, short, spread
from subspace.study.reports.grid import Grid
from subspace.study.reports.grids import compared_grid, price_tanner_grid
from subspace.study.results.comparisons import comparisons
from subspace.study.results.schema import read
from subspace.study.results.summary import by_setting, rows_of_size, setting, sizes, summary_table
from subspace.study.spec.study import SIZES

HERE = Path(__file__).resolve().parent
PAGE, RESULTS = HERE.parent / "docs" / "findings.md", HERE / "results"
TABLE = re.compile(r"(<!-- table: ([^;]+); ([^;]+); (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
PICTURE = re.compile(r"\]\(\.\./benchmarks/results/([^/)]+)/([^/)]+)\.png\)")
OWN = (
    "runs.csv",
    "study.toml",
    "jacobian-summary.csv",
    "trainability.csv",
    "phase.csv",
    "dimension.csv",
    "dimension-runs.csv",
)
OWN += ("jacobian-*.png", "trainability-*.png", "phase-*.png", "dimension-*.png")


def runs(study: str) -> pd.DataFrame:
    """The long table of a study's runs."""
    return read(RESULTS / study / "runs.csv", "runs")


def summary(studies: Iterable[str], at_place: str) -> pd.DataFrame:
    """Means over seeds of all runs of the studies on one data set and network; ValueError where there are none."""
    found = dict(by_setting(summary_table(pd.concat([runs(study) for study in studies]))))
    if at_place not in found:
        raise ValueError(f"place must be one of {'; '.join(found)}, got {at_place!r}")
    return found[at_place]


def by_size(table: pd.DataFrame, cell: Callable[[pd.DataFrame], str]) -> str:
    """A row per method, a column per size, of cell(its rows); a method without a size has one, in the first column."""
    every = sizes(table)
    rows = []
    for label, own in table.groupby("label", sort=False):
        here = [own] if own[list(SIZES)].isna().all(axis=None) else [rows_of_size(own, one) for one in every]
        cells = [cell(lines) if len(lines) else "" for lines in here]
        rows.append([str(label), *cells, *[""] * (len(every) - len(here))])
    heads = ["method", *(asked_size(rows_of_size(table, one).iloc[0]) for one in every)]
    return Grid.of_texts("", heads, rows).to_markdown()


def jacobian_summary(study: str) -> pd.DataFrame:
    """What `subspace jacobian` found, with the sizes that nobody could ask for when it did."""
    table = pd.read_csv(RESULTS / study / "jacobian-summary.csv")
    return table.reindex(columns=[*table.columns, *(size for size in SIZES if size not in table)])


def ranks(study: str, at_place: str) -> str:
    """The ranks of Jacobians, by size."""
    table = jacobian_summary(study)
    table = table[table.apply(setting, axis=1) == at_place]
    return by_size(table, lambda lines: " -> ".join(f"{rank:g}" for rank in lines["rank"]))


def channels(study: str, at_place: str) -> str:
    """The effective numbers of channels: a row per layer, a column per offset."""
    table = pd.read_csv(RESULTS / study / "table.csv")
    table = table[table["place"] == at_place].pivot_table("count", ["layer", "of"], "offset", sort=False)
    rows = [[layer, f"{of}", *(f"{count:.1f}" for count in row)] for (layer, of), row in table.iterrows()]
    return Grid.of_texts("", ["layer", "channels", *table.columns], rows).to_markdown()


def dimensions(study: str, at_place: str) -> str:
    """The intrinsic dimensions that were found, with their intervals."""
    rows = []
    for _, row in pd.read_csv(RESULTS / study / "dimension.csv").iterrows():
        found = row["note"] if pd.isna(row["dim"]) else f"{row['dim']:,.0f} [{row['low']:,.0f}, {row['high']:,.0f}]"
        where = [row["data"], row["model"], row["label"], f"{100 * row['ordinary']:.1f}"]
        rows.append([*where, found, f"{row['seeds']}", f"{row['trainings']}"])
    heads = ["data", "network", "method", "dense %", "dim [95 % interval]", "seeds", "trainings"]
    return Grid.of_texts("", heads, rows).to_markdown()


def pairs(studies: str, at_place: str) -> str:
    """The comparisons of methods with the best of each size: a row per method, a column per size."""
    compared = comparisons(pd.concat([runs(study) for study in studies.split()]))
    return compared_grid(dict(by_setting(compared))[at_place], at_place).to_markdown(small=True)


def made(studies: str, at_place: str, what: str) -> str:
    """The table of a marker's three parts."""
    own = {"rank": ranks, "channels": channels, "pairs": pairs, "dimension": dimensions}
    if what in ("tuners", "tuner_costs"):
        table_of = {"tuners": tuning.accuracies, "tuner_costs": tuning.costs}[what]
        return table_of(pd.read_csv(RESULTS / studies / "runs.csv"), at_place)
    if what == "files":
        return small_files.table(pd.concat([runs(study) for study in studies.split()]))
    if what in own:
        return own[what](studies, at_place)
    table = summary(studies.split(), at_place)
    if what == "accuracy":
        return by_size(table, lambda lines: spread(lines["mean"].iloc[0], lines["std"].iloc[0]))
    if what == "bits":
        return by_size(table, lambda lines: bits(lines["bits"].iloc[0], lines["bits_std"].iloc[0]))
    if what != "talk":
        return by_size(table, lambda lines: short(lines[what].iloc[0]))
    return price_tanner_grid(table, at_place).to_markdown()


def renewed(page: str) -> str:
    """The page with every table as the results have it."""
    return TABLE.sub(lambda found: found[1] + made(*found.group(2, 3, 4)) + found[5], page)


def drawn(study: str, name: str) -> Figure | None:
    """The picture of that name; None if it is the study's own."""
    if name in sweeps.SWEEPS:
        several = sorted(RESULTS.glob(f"{study}*")) if name in sweeps.OF_SEVERAL_STUDIES else [RESULTS / study]
        return sweeps.SWEEPS[name](pd.concat([runs(path.name) for path in several]))
    if name == "files":
        return small_files.figure(pd.concat([runs(path.name) for path in sorted(RESULTS.glob("*bytes-*"))]))
    if name == "gains":
        kept = pd.read_csv(RESULTS / study / "runs.csv")
        return tuning.figure(kept[kept["task"] != "digits"])
    if name == "rank":
        return rank_figure(jacobian_summary(study), summary_table(runs(study)))
    places = by_setting(summary_table(runs(study))) if (RESULTS / study / "runs.csv").exists() else []
    for where, part in places:
        if re.sub(r"[^a-z0-9_.]+", "-", where.lower()).strip("-") == name:
            return accuracy_against_size(part, f"Test accuracy: {where}", sizes(part)[0][0])
    return None


def put(path: Path, png: bytes) -> None:
    """Write a picture, in 256 colours."""
    content = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(content, "png")
    path.write_bytes(content.getvalue())


def collect(out: Path) -> None:
    """Take over into results/ what is kept of the studies in `out` that the page has a table or a picture of."""
    page = PAGE.read_text()
    wanted = {study for found in TABLE.finditer(page) for study in found[2].split()}
    wanted |= {study for study, _ in PICTURE.findall(page)}
    for source in sorted(folder for folder in out.iterdir() if any(folder.name.startswith(study) for study in wanted)):
        target = RESULTS / source.name
        target.mkdir(parents=True, exist_ok=True)
        for path in (path for each in OWN for path in source.glob(each)):
            if path.suffix == ".png":
                put(target / path.name, path.read_bytes())
            else:
                shutil.copyfile(path, target / path.name)


def main() -> None:
    """Collect, if asked to, and make the page's tables and pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collect", type=Path, help="the --out of `subspace run`")
    options = parser.parse_args()
    if options.collect:
        collect(options.collect)
    PAGE.write_text(renewed(PAGE.read_text()))
    for study, name in PICTURE.findall(PAGE.read_text()):
        if figure := drawn(study, name):
            put(RESULTS / study / f"{name}.png", images.saved(figure, "png"))


if __name__ == "__main__":
    main()
