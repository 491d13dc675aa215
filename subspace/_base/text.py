"""Plain-text tables."""

from __future__ import annotations

from collections.abc import Sequence


def table(lines: Sequence[Sequence[str]], align: str) -> list[str]:
    """The lines with their cells aligned, "<" or ">" by column, and a rule below the first."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(f"{cell:{a}{w}}" for cell, a, w in zip(line, align, widths, strict=True)) for line in lines]
    return [text[0], "-" * len(text[0]), *text[1:]]
