"""Convolutions, forward and backward: DCTpS beside nn.Conv2d in both formats, the authors' design and prune masks.

A layer is written "KxK C->O @SIZE", with " sS" for a stride and " gG" for groups, as "3x3 64->128 @32 s2". With --of
the layers are all the distinct convolutions and linear layers of networks instead.
"""

from __future__ import annotations

import re

import pandas as pd
import torch
from torch import nn

from benchmarks import plots
from benchmarks.networks import NETWORKS, label, layers
from benchmarks.report import Row, options, rows, show, write
from benchmarks.timing import Call, interleave
from benchmarks.variants import OTHERS, product, variant

LAYERS = [
    *("3x3 64->64 @32", "3x3 256->256 @8", "3x3 512->512 @4", "3x3 512->512 @8 s2", "3x3 128->128 @16"),
    *("1x1 256->1024 @8", "1x1 2048->512 @4", "1x1 64->256 @32", "1x1 24->144 @32", "3x3 144->144 @32 g144"),
]
Layer = tuple[nn.Module, tuple[int, ...]]  # and the shape of one example of its input


def parsed(text: str) -> Layer:
    """The layer that a label names."""
    match = re.fullmatch(r"(\d+)x\1 (\d+)->(\d+) @(\d+)(?: s(\d+))?(?: g(\d+))?", text)
    if not match:
        raise ValueError(f'a layer must be as "3x3 64->128 @32 s2", got {text!r}')
    k, c_in, c_out, size, stride, groups = (int(group or 1) for group in match.groups())
    layer = nn.Conv2d(c_in, c_out, k, stride, padding=k // 2, groups=groups, bias=False)
    return layer, (c_in, size, size)


def contest(layer: Layer, batch: int, density: float, names: list[str]) -> dict[str, Call]:
    """The calls to time; a route that a layer cannot take is left out."""
    module, shape = layer
    calls, x = {}, torch.randn(batch, *shape)
    for name in names:
        try:
            calls[name] = product(name, variant(name, module, density), x)
            calls[name]()
        except ValueError:
            if name in OTHERS or name.startswith("auto"):
                raise
    return calls


def main() -> None:
    """Measure, print, write."""
    parser = options(__doc__)
    parser.add_argument("--layers", nargs="+", default=LAYERS)
    parser.add_argument("--of", nargs="+", choices=NETWORKS, default=[], help="networks whose layers to measure")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--densities", nargs="+", type=float, default=[1e-3])
    parser.add_argument("--routes", nargs="+", default=["auto", "remat"], help="routes of subspace.structured")
    parser.add_argument("--others", nargs="+", choices=OTHERS, default=["dense", "channels_last", "authors", "prune"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    chosen = {label(*parsed(text)): parsed(text) for text in args.layers}
    if args.of:
        chosen = {name: layer for network in args.of for name, layer in layers_of(network).items()}
    table: list[Row] = []
    for name, layer in chosen.items():
        for p in args.densities:
            times = interleave(contest(layer, args.batch, p, [*args.others, *args.routes]), args.rounds, args.seconds)
            found = rows(times, args.others, layer=name, batch=args.batch, density=p)
            for row in found:
                show(row)
            table += found
    frame = pd.DataFrame(table)
    auto = frame[frame["variant"] == "auto"] if "dense" in args.others else frame[:0]
    title = f"auto over nn.Conv2d, batch {args.batch}, {args.threads} threads"
    write(args.out, table, **({"speedup": plots.heat_map(auto, title)} if len(auto) else {}))


def layers_of(network: str) -> dict[str, Layer]:
    """The distinct layers of a network."""
    make, shape = NETWORKS[network]
    return layers(make(), shape)


if __name__ == "__main__":
    main()
