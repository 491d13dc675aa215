"""Tables as plain text and as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape


def table(lines: Sequence[Sequence[str]], align: str) -> list[str]:
    """The lines with their cells aligned, "<" or ">" by column, and a rule below the first."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(f"{cell:{a}{w}}" for cell, a, w in zip(line, align, widths, strict=True)) for line in lines]
    return [text[0], "-" * len(text[0]), *text[1:]]


def html(lines: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> str:
    """The lines as an HTML table, the first as its head, with notes below it."""
    head, *rows = ["".join(f"<td>{escape(cell)}</td>" for cell in line) for line in lines]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    said = "".join(f"<div>{escape(note)}</div>" for note in notes)
    return f"<table><thead><tr>{head.replace('td>', 'th>')}</tr></thead><tbody>{body}</tbody></table>{said}"
