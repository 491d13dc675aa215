"""How a method looks: the same colour, dashes and marker in every figure.

The colours are Okabe and Ito's, told apart with every kind of colour vision; dashes and markers differ too, so that a
figure can be read in grey.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import cycle
from typing import Any

from subspace.study.methods import METHODS

BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
COLOURS, BLACK = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY), "black"  # black is dense training
DASHES: dict[str, Any] = {
    "solid": "-",
    "dashed": (0, (4, 1.5)),
    "dotted": (0, (1, 1.2)),
    "mixed": (0, (5, 1.2, 1, 1.2)),
}
MARKERS = "osD^vp"
Look = tuple[str, str]  # a colour, and a key of DASHES
LOOKS: list[Look] = [(colour, dashes) for dashes in DASHES for colour in COLOURS]
METHOD_LOOKS: dict[str, Look] = {
    "ordinary": (BLACK, "dashed"),
    "random_pruning_epl": (ORANGE, "solid"),
    "random_pruning_uniform": (ORANGE, "dashed"),
    "random_pruning_erk": (VERMILLION, "dashed"),
    "magnitude": (ORANGE, "dotted"),
    "snip": (BLUE, "dotted"),
    "grasp": (GREEN, "dashed"),
    "iterative_snip": (VERMILLION, "dotted"),
    "force": (PURPLE, "solid"),
    "synflow": (GREEN, "solid"),
    "imp": (PURPLE, "dashed"),
    "set": (SKY, "dashed"),
    "rigl": (VERMILLION, "solid"),
    "dctps": (BLUE, "solid"),
    "dctps_set": (GREEN, "dotted"),
    "dctps_rigl": (BLUE, "dashed"),
    "freezenet": (PURPLE, "dotted"),
    "freezenet_snip": (SKY, "dotted"),
    "random_subspace": (GREEN, "mixed"),
}
KNOWN = {METHODS[name].label: look for name, look in METHOD_LOOKS.items()}
KNOWN |= {METHODS["dctps"].label_for({"offset": "signed_dct"}): (SKY, "solid")}
KNOWN |= {METHODS["force"].label_for({"batches": "one"}): METHOD_LOOKS["force"]}


def assign_looks(labels: Iterable[object]) -> dict[str, dict[str, Any]]:
    """matplotlib's properties of the line of each method, by its label.

    A method with its default options always has the same; others take, in their order, what is not taken.
    """
    return {label: _line(look) for label, look in _chosen(labels).items()}


def css_lines(labels: Iterable[object]) -> list[tuple[str, str]]:
    """Each label with its line as CSS has a border: "solid #0072B2"."""
    styles = {"mixed": "double"}
    return [(label, f"{styles.get(dashes, dashes)} {colour}") for label, (colour, dashes) in _chosen(labels).items()]


def _chosen(labels: Iterable[object]) -> dict[str, Look]:
    every = list(dict.fromkeys(map(str, labels)))
    chosen: dict[str, Look] = {}
    for label in every:
        if (look := KNOWN.get(label)) and look not in chosen.values():  # a method may be there in two ways
            chosen[label] = look
    free = cycle([look for look in LOOKS if look not in chosen.values()])
    return {label: chosen.get(label) or next(free) for label in every}


def _line(look: Look) -> dict[str, Any]:
    colour, dashes = look
    marker = MARKERS[((*COLOURS, BLACK).index(colour) + list(DASHES).index(dashes)) % len(MARKERS)]
    return {"color": colour, "linestyle": DASHES[dashes], "marker": marker, "markeredgecolor": "white"}
