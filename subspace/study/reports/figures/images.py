"""How figures become files and parts of a page: the same bytes for the same figure, whatever the user has set."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib
import matplotlib.style
from matplotlib.figure import Figure


@contextmanager
def style() -> Iterator[None]:
    """matplotlib's own defaults in place of the user's, which are back afterwards; a dollar sign is no mathematics."""
    with matplotlib.style.context("default"), matplotlib.rc_context({"text.parse_math": False, "svg.hashsalt": "s"}):
        yield


def saved(figure: Figure, kind: str) -> bytes:
    """The contents of a file of a figure, "png" or "svg"."""
    content = io.BytesIO()
    with style():
        figure.savefig(content, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else None)
    return content.getvalue()


def inline(svg: bytes, name: str) -> str:
    """An SVG file as an element of a page with others: as wide as there is room, every id with `name` in front.

    One with several columns of panels is of the class "wide".
    """
    text = svg.decode()
    text = text[text.index("<svg") :]
    wide = float(re.findall(r'viewBox="0 0 ([\d.]+)', text)[0]) > 700
    text = text.replace("<svg", '<svg class="wide"' if wide else "<svg", 1)
    for size in ("width", "height"):
        text = re.sub(rf'(<svg[^>]*?) {size}="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"(?<![\d.])(\d*[1-9]\d*\.\d\d)\d+", r"\1", text)  # a hundredth of a point
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
