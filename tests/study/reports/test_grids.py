"""Tables for people: three renderings of one grid, with the figures of the summary."""

import html
import operator
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from subspace.study.entries.entry import Choice
from subspace.study.methods import METHODS
from subspace.study.reports import grids
from subspace.study.reports.grid import Cell, Grid
from subspace.study.results.comparisons import comparisons
from subspace.study.results.equal_cost import at_equal
from subspace.study.results.summary import summary_table
from subspace.study.results.tables import runs_table
from subspace.study.spec.study import Run, Study, Training
from tests.support.cases import rest_slow
from tests.support.records import accuracy, failure, finished

TRAIN = Training(epochs=2, batch=3, learning_rate=0.5)
SAFE = st.text(
    st.characters(codec="ascii", categories=["L", "N", "P", "S"], exclude_characters="|"), min_size=1, max_size=30
)
TABLES = st.integers(1, 12).flatmap(
    lambda n: st.tuples(
        st.lists(SAFE, min_size=n, max_size=n), st.lists(st.lists(SAFE, min_size=n, max_size=n), max_size=5)
    )
)


def run(name, density=None, seed=0, **options):
    return Run(Choice(name, options), density=density, seed=seed, train=TRAIN)


RECORDS = [
    finished(run("dctps", 0.01, 0), 0.5),
    finished(run("dctps", 0.01, 1), 0.7),
    failure(run("dctps", 0.01, 2), "no luck"),
    finished(run("dctps", 0.1, 0), 0.8),
    finished(run("imp", 0.1, 0, rounds=3), 0.9),
    *(finished(run("ordinary", seed=seed), 0.95 + 0.01 * seed) for seed in (0, 1, 2)),
]
TABLE = summary_table(runs_table(RECORDS))


def shown(grid, width=100):
    """A table in a terminal of that width."""
    console = Console(width=width)
    with console.capture() as capture:
        console.print(grid.to_rich(width))
    return capture.get()


def lines(text):
    """The words of each line, with one blank between."""
    return [" ".join(line.split()) for line in text.splitlines()]


@given(TABLES, st.integers(60, 120))
def test_every_cell_is_in_every_rendering_and_a_terminal_has_room(table, width):
    heads, rows = table
    grid = Grid.of_texts("a caption", heads, rows)
    folded = "".join(shown(grid, width).split())
    page, markdown = grid.to_html(), grid.to_markdown()
    for row in [heads, *rows]:
        assert "| " + " | ".join(row) + " |\n" in markdown
        for cell in row:
            assert html.escape(cell).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in page
        for cell in row[1:]:
            assert cell in folded
    assert page.count("<tr>") == 1 + len(rows)
    assert max(map(len, shown(grid, width).splitlines())) <= width


def test_what_a_cell_says_is_neither_markup_nor_a_control_code():
    grid = Grid("<b>&", [("<i>", "<u>")], [[Cell("<script>\x1b[31m", "\x1b]0;owned\x07", 1.5)]])
    assert re.findall(r"<(\w+)", grid.to_html()) == [
        "div",
        "table",
        "caption",
        "thead",
        "tr",
        "th",
        "tbody",
        "tr",
        "td",
        "br",
        "small",
    ]
    assert "\x1b" not in shown(grid)
    assert "\\x1b]0;owned" in shown(grid)


def test_they_have_the_figures_of_the_summary():
    accuracies = lines(shown(grids.accuracy_grid(TABLE, "here"), 120))
    assert "ordinary (dense) dense 100% 96.0 ± 1.0 3 61,470 0 10 4 246k 1.98M 16.1G" in accuracies
    assert "0.01 1% 60.0 ± 14.1 2/3 615 5 10 4 2.96k 1.01M 240M" in accuracies
    costs = grids.costs_grid(TABLE, "here").to_markdown()
    assert (
        "| DCTpS, EPL | 0.1 | 19.2k | 1.07M | 400k | 37.4k | 1.68G | 0 | 210k | 2.00M | 84.0k | 800k | 2.5 |" in costs
    )
    talk = grids.price_tanner_grid(TABLE, "here").to_markdown()
    assert "| DCTpS, EPL | -15.0 | -35.5 | 0 | 30.0k | 12.0k | 246k | 4.92k | 3.69k |" in talk
    assert "IMP" not in talk  # which has nothing at the smallest size
    equal = lines(shown(grids.equal_grid(at_equal(TABLE, "bytes", [3000, 20_000]), "here")))
    at = equal.index("DCTpS, EPL 60.0 ± 14.1 80.0")
    assert equal[at + 1] == "0.01: 2.96k 0.1: 19.2k"


def test_who_has_no_result_at_a_size_is_not_the_best_there():
    def entry(name, density, last):
        run = Run(Choice(name), Choice("mlp"), Choice("digits"), density)
        return failure(run) if last is None else finished(run, last)

    lasts = {"dctps": (0.9, 0.8), "rigl": (0.8, None), "set": (0.7, 0.7)}
    records = [
        entry(name, at, last) for name, each in lasts.items() for at, last in zip((0.1, 0.01), each, strict=True)
    ]
    grid = grids.compared_grid(comparisons(runs_table(records)), "here")
    found = {row[0].text: [cell.text for cell in row[1:]] for row in grid.rows}
    assert found == {
        METHODS["rigl"].label: ["+10.0", "-"],
        METHODS["set"].label: ["+20.0", "+10.0"],
    }


STUDIES = [Study("s", tuple(METHODS)), Study("s", tuple(METHODS), dims=tuple(range(5, 13)))]


@pytest.mark.parametrize("study", rest_slow(STUDIES, STUDIES[:1]))
def test_every_label_and_every_figure_fits_into_100_characters(study):
    wide = {"weights": 23_652_032, "dim": 23_652_032, "flops_total": 9.99e17, "file_bytes": 99_900_000}
    records = [finished(one, accuracy(one) / (1 + one.seed), **wide) for one in study.runs()]
    table = summary_table(runs_table(records))
    made = [make(table, "here") for make in (grids.accuracy_grid, grids.costs_grid, grids.price_tanner_grid)]
    text = "".join(map(shown, [*made, grids.equal_grid(at_equal(table, "flops"), "here")]))
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text
    assert operator.countOf(text.split(), "999P") >= len(table)


def test_a_row_of_failures_has_no_figure():
    table = summary_table(runs_table(RECORDS[2:3]))
    assert "DCTpS, EPL 0.01 - - 0/1 - - - -" in lines(shown(grids.accuracy_grid(table, "here")))
