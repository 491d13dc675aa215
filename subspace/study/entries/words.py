"""Figures in words, and text that is safe to show."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Seconds in two units.

    >>> duration(9.4), duration(75.2), duration(7384), duration(300_000)
    ('9 s', '1 min 15 s', '2 h 3 min', '3 d 11 h')
    """
    whole = round(seconds)
    for large, small, unit, per in (("d", "h", 3600, 24), ("h", "min", 60, 60), ("min", "s", 1, 60)):
        count, rest = divmod(whole // unit, per)
        if count:
            return f"{count} {large} {rest} {small}"
    return f"{whole} s"


def printable(text: str) -> str:
    r"""The text with control codes, which a terminal would obey, as what Python writes for them; lines stay lines.

    >>> print(printable("a \x1b[31mred\x1b[0m word\n"), end="")
    a \x1b[31mred\x1b[0m word
    """
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
