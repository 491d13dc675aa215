"""Training steps of whole networks: DCTpS beside dense in both memory formats, the authors' design and prune masks."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor, nn

from benchmarks import plots
from benchmarks.networks import NETWORKS
from benchmarks.report import Row, options, rows, show, write
from benchmarks.timing import interleave
from benchmarks.variants import OTHERS, step, variant


def models(network: str, density: float, names: list[str]) -> dict[str, nn.Module]:
    """Every variant of a network."""
    model = NETWORKS[network][0]()
    return {name: variant(name, model, density) for name in names}


def images(network: str, batch: int) -> Tensor:
    """Random numbers for images, or for what a ViT's MLP is given."""
    return torch.randn(batch, *NETWORKS[network][1])


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
            variants = models(network, p, [*args.others, *args.routes])
            x = images(network, args.batch)
            calls = {name: step(name, model, x, args.adam) for name, model in variants.items()}
            times = interleave(calls, args.rounds, args.seconds)
            found = rows(times, args.others, case=network, batch=args.batch, density=p)
            for row in found:
                show(row)
            table += found
    title = f"training step, forward and backward, batch {args.batch}, {args.threads} threads"
    first = pd.DataFrame(table).query("density == @args.densities[0]")
    write(args.out, table, steps=plots.bars(first, title))


if __name__ == "__main__":
    main()
