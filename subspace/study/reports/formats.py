"""Figures of tables and pictures as text.

Accuracy is in per cent of the test samples, its change in points, each with the standard deviation over seeds. Counts
have a unit of 1000: 2.26M FLOPs are 2,260,000. What is not known is "-".
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from subspace.study.spec.study import SIZES


def asked_size(row: pd.Series) -> str:
    """What was asked to train: a density, a dim, bytes, or all."""
    found = [(name, row[name]) for name in SIZES if pd.notna(row[name])]
    return format_size(found[0]) if found else "dense"


def format_size(size: tuple[str, float]) -> str:
    """A size without its name.

    >>> format_size(("density", 0.001)), format_size(("dim", 2000))
    ('0.001', '2,000')
    """
    return f"{size[1]:.4g}" if size[0] == "density" else f"{int(size[1]):,}"


def size_in_figures(size: tuple[str, float]) -> str:
    """A size without its name, densities in per cent.

    >>> size_in_figures(("density", 0.001)), size_in_figures(("dim", 2000))
    ('0.1 %', '2,000')
    """
    return f"{100 * size[1]:g} %" if size[0] == "density" else format_size(size)


def seeds(row: pd.Series) -> str:
    """How many seeds finished, and of how many if some failed."""
    return f"{row['seeds']}" + (f"/{row['seeds'] + row['failed']}" if row["failed"] else "")


def spread(mean: float, std: float, sign: str = "") -> str:
    """A mean of fractions in per cent, and its standard deviation where there is one."""
    if pd.isna(mean):
        return "-"
    return f"{100 * mean:{sign}.1f}" + ("" if pd.isna(std) else f" ± {100 * std:.1f}")


def bits(mean: float, std: float) -> str:
    """A mean of bits, and its standard deviation where there is one."""
    if pd.isna(mean):
        return "-"
    return f"{mean:.3f}" + ("" if pd.isna(std) else f" ± {std:.3f}")


def hundredth(fraction: float) -> str:
    """A fraction in per cent with two digits after the point."""
    return "-" if pd.isna(fraction) else f"{100 * fraction:.2f}"


def percent(fraction: float) -> str:
    """A fraction in per cent, in three digits.

    >>> percent(0.0099983), percent(0.00001234), percent(1.0), percent(float("nan"))
    ('1%', '0.00123%', '100%', '-')
    """
    return "-" if pd.isna(fraction) else f"{100 * fraction:.3g}%"


def exact(count: float) -> str:
    """A whole number."""
    return "-" if pd.isna(count) else f"{int(count):,}"


def counted(count: float) -> str:
    """A count, exact up to a million.

    >>> counted(53_120), counted(23_652_032), counted(float("nan"))
    ('53,120', '23.7M', '-')
    """
    return f"{int(count):,}" if pd.notna(count) and count < 1e6 else short(count)


def short(value: float, units: Sequence[str] = ("", "k", "M", "G", "T", "P", "E")) -> str:
    """A count in three digits and a unit.

    >>> short(0), short(532), short(1234.5), short(999_999), short(45_678_900), short(float("nan"))
    ('0', '532', '1.23k', '1.00M', '45.7M', '-')
    """
    if pd.isna(value):
        return "-"
    for power, unit in enumerate(units):
        scaled = value / 1000**power
        if abs(scaled) < 999.5:
            digits = 0 if unit == "" or abs(scaled) >= 99.95 else 1 if abs(scaled) >= 9.995 else 2
            return f"{scaled:.{digits}f}{unit}"
    return f"{value:.3g}"


def tenths(value: float, form: str = ",.1f") -> str:
    """A number with one digit after the point, or in another form."""
    return "-" if pd.isna(value) else f"{value:{form}}"


def bar(fraction: float, width: int = 10) -> str:
    """A fraction as a bar of text.

    >>> bar(0.55), bar(1.0), bar(0.0, 3)
    ('█████▌    ', '██████████', '   ')
    """
    whole, eighths = divmod(round(8 * width * fraction), 8)
    return ("█" * whole + " ▏▎▍▌▋▊▉"[eighths].strip()).ljust(width)
