"""`subspace pack`: a file of a model in fewer bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import subspace
from subspace.study.cli import options
from subspace.study.entries.lookup import lookup
from subspace.study.entries.words import printable

Source = Annotated[Path, typer.Argument(help="a file of subspace.save")]
Target = Annotated[Path, typer.Argument(help="the new file")]
Bits = Annotated[str, typer.Option(help="of a number of theta, from 2 to 8; several to choose from, as 8,6,4")]
By = Annotated[str, typer.Option(help="MODULE:NAME of a function from an open file to a loss; less is better")]
Rise = Annotated[float, typer.Option(help="the most by which the measure may rise")]


def pack(source: Source, target: Target, bits: Bits = "8", measure: By = "", rise: Rise = 0.01) -> None:
    """Write a file of subspace.save again with theta quantised and the whole entropy coded, for subspace.load.

    With a measure, such as the loss on samples held apart, the fewest of the bits that it allows.
    """
    with options.sentences():
        try:
            choices = [int(word) for word in bits.split(",")]
        except ValueError:
            raise ValueError(f"bits must be integers with commas between, got {bits!r}") from None
        worth = lookup(measure, {}, "measure", importable=True) if measure else None
        found = subspace.pack(source, target, choices if len(choices) > 1 else choices[0], worth, rise)
        for each, value in found.measures.items():
            typer.echo(f"{'exact' if each == 32 else f'{each} bits'}: {value:.6g}")
        share = f"{found.bytes:,} bytes in place of {found.exact_bytes:,}"
        told = f"{target}: {found.bits} bits, {share}; theta changes by {found.error:.2%} (root mean square)"
        typer.echo(printable(told))
