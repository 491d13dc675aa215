"""Training steps of whole networks: DCTpS beside dense in both memory formats, the authors' design and prune masks."""

from __future__ import annotations

import pandas as pd
import torch

from benchmarks import plots
from benchmarks.networks import NETWORKS
from benchmarks.report import Row, options, rows, show, write
from benchmarks.timing import Times, interleave
from benchmarks.variants import OTHERS, step, variant


def measure(
    network: str, batch: int, density: float, names: list[str], rounds: int, seconds: float, adam: bool = False
) -> Times:
    """Seconds of a training step of every variant of a network."""
    make, shape = NETWORKS[network]
    model, x = make(), torch.randn(batch, *shape)
    calls = {name: step(name, variant(name, model, density), x, adam) for name in names}
    return interleave(calls, rounds, seconds)


def main() -> None:
    """Measure, print, write."""
    parser = options(__doc__, rounds=5)
    parser.set_defaults(seconds=300.0)
    names = ["resnet50", "mobilenetv2", "vgg19", "vit"]
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=names)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--densities", nargs="+", type=float, default=[1e-3])
    parser.add_argument("--routes", nargs="+", default=["auto", "remat"], help="routes of subspace.structured")
    parser.add_argument("--others", nargs="+", choices=OTHERS, default=["dense", "channels_last", "authors", "prune"])
    parser.add_argument("--adam", action="store_true", help="count Adam's step too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    table: list[Row] = []
    for network in args.networks:
        for p in args.densities:
            variants = [*args.others, *args.routes]
            times = measure(network, args.batch, p, variants, args.rounds, args.seconds, args.adam)
            found = rows(times, args.others, case=network, batch=args.batch, density=p)
            for row in found:
                show(row)
            table += found
    title = f"training step, batch {args.batch}, {args.threads} threads"
    first = pd.DataFrame(table).query("density == @args.densities[0]")
    write(args.out, table, steps=plots.bars(first, title))


if __name__ == "__main__":
    main()
