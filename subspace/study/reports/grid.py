"""A table for people, and how it becomes HTML, text for a terminal, and Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from markupsafe import Markup
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from subspace.study.entries.words import printable

LABEL = 24  # characters of the first column in a terminal
HTML = """<div class="box" tabindex="0" role="region" aria-label="{caption}">
<table class="{kind}">
<caption>{caption}</caption>
<thead><tr>{heads}</tr></thead>
<tbody>
{rows}
</tbody>
</table>
</div>
"""


class Cell(NamedTuple):
    """What a cell says, what is below that in small, and the figure it sorts by (None: by what it says)."""

    text: str
    small: str = ""
    order: float | None = None


class Grid(NamedTuple):
    """A table: its caption, its heads with an explanation each, its rows; sortable: figures, to sort and to filter."""

    caption: str
    heads: list[tuple[str, str]]
    rows: list[list[Cell]]
    sortable: bool = True

    @classmethod
    def of_texts(cls, caption: str, heads: Iterable[str], rows: Iterable[Iterable[object]]) -> Grid:
        """A table of texts as they are, in their order."""
        return cls(caption, [(head, "") for head in heads], [[Cell(str(cell)) for cell in row] for row in rows], False)

    def to_html(self) -> Markup:
        """An element of a page; whatever a cell says is text, never markup."""
        heads = (Markup('<th scope="col" title="{}">{}</th>').format(explained, head) for head, explained in self.heads)
        return Markup(HTML).format(
            caption=self.caption,
            kind="grid display compact" if self.sortable else "plain",
            heads=Markup("").join(heads),
            rows=Markup("\n").join(
                Markup("<tr>{}</tr>").format(Markup("").join(map(_html_cell, row))) for row in self.rows
            ),
        )

    def to_rich(self, width: int = 100) -> Group:
        """For a terminal of that width; columns for which there is no room are in further tables below."""
        cells = [[_lines(cell) for cell in row] for row in self.rows]
        columns = list(zip(*cells, strict=True)) if cells else [() for _ in self.heads]
        heads = [head.replace(" ", "\n", 1) for head, _ in self.heads]
        widths = [
            2 + max(len(line) for text in (head, *column) for line in text.split("\n"))
            for head, column in zip(heads, columns, strict=True)
        ]
        tables: list[Table] = []
        places = list(range(1, len(heads)))
        while places or not tables:
            room, here = width - min(widths[0], LABEL + 2), 0
            while here < len(places) and (not here or sum(widths[place] for place in places[: here + 1]) <= room):
                here += 1
            tables.append(_rich_table(heads, cells, [0, *places[:here]]))
            places = places[here:]
        return Group(Text(printable(self.caption), style="bold"), *tables, Text())

    def to_markdown(self, small: bool = False) -> str:
        """Markdown, with or without what is in small."""
        lines = [[head for head, _ in self.heads], ["---", *["---:"] * (len(self.heads) - 1)]]
        lines += [[f"{cell.text} {cell.small * small}".rstrip() for cell in row] for row in self.rows]
        return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _html_cell(cell: Cell) -> Markup:
    small = Markup("<br><small>{}</small>").format(cell.small) if cell.small else ""
    order = Markup("") if cell.order is None else Markup(' class="figure" data-order="{}"').format(cell.order)
    return Markup("<td{}>{}{}</td>").format(order, cell.text, small)


def _lines(cell: Cell) -> str:
    return printable(cell.text + (f"\n{cell.small}" if cell.small else ""))


def _rich_table(heads: list[str], cells: list[list[str]], places: list[int]) -> Table:
    """The columns at these places; a first cell that says what the one above says is empty."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column(Text(heads[0]), overflow="fold", max_width=LABEL)
    for place in places[1:]:
        table.add_column(Text(heads[place]), justify="right", no_wrap=True)
    above = ""
    for row in cells:
        table.add_row(*(Text(row[place] if place or row[0] != above else "") for place in places))
        above = row[0]
    return table
