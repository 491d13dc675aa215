"""Linear layers, forward and backward: DCTpS at several densities beside nn.Linear, the authors' design and masks."""

from __future__ import annotations

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import nn

from benchmarks import plots
from benchmarks.report import Row, options, rows, show, write
from benchmarks.timing import Call, Times, interleave, sample, spread
from benchmarks.variants import product, variant

FLOOR = (
    28  # bytes an element: forward reads x and writes y (allocating the line), backward reads gy and x and writes gx
)


def contest(
    size: tuple[int, int], batch: int, densities: list[float], routes: list[str], others: list[str]
) -> dict[str, Call]:
    """The calls for one layer of (n_out, n_in): "dense", ..., and a route with a density, as "auto 0.001"."""
    n_out, n_in = size
    layer, x = nn.Linear(n_in, n_out, bias=False), torch.randn(batch, n_in)
    calls = {name: product(name, variant(name, layer, densities[0]), x) for name in others}
    return calls | {f"{r} {p:g}": product(r, variant(r, layer, p), x) for r in routes for p in densities}


def by_density(times: Times, densities: list[float], **case: object) -> list[Row]:
    """The rows of a contest: those of each density are beside the same times of the others."""
    others = [name for name in times if " " not in name]
    table: list[Row] = []
    for p in densities:
        mine = {name.split()[0]: t for name, t in times.items() if name in others or name.endswith(f" {p:g}")}
        table += rows(mine, others, **case, density=p)
    return table


def bandwidth() -> float:
    """Bytes a second that a copy of 256 MB moves, read and written."""
    source = torch.ones(1 << 26)
    target = torch.empty_like(source)
    return 2 * source.nbytes / spread(sample(lambda: target.copy_(source), 1) for _ in range(7)).median


def main() -> None:
    """Measure, print, write."""
    parser = options(__doc__)
    parser.add_argument("--sizes", nargs="+", default=["256", "512", "1024", "2048", "4096", "8192"], metavar="MxN")
    parser.add_argument("--batches", nargs="+", type=int, default=[128])
    parser.add_argument("--densities", nargs="+", type=float, default=[1e-2, 1e-3, 1e-4])
    parser.add_argument("--routes", nargs="+", default=["auto"], help="routes of subspace.structured")
    parser.add_argument("--others", nargs="+", default=["dense", "authors", "prune"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    table: list[Row] = []
    for size in args.sizes:
        n_out, _, n_in = size.partition("x")
        for batch in args.batches:
            shape = int(n_out), int(n_in or n_out)
            calls = contest(shape, batch, args.densities, args.routes, args.others)
            times = interleave(calls, args.rounds, args.seconds)
            case = {"layer": f"{shape[0]}x{shape[1]}", "q": max(shape), "batch": batch}
            found = by_density(times, args.densities, **case)
            for row in found:
                show(row)
            table += found
    write(args.out, table, **figures(pd.DataFrame(table), args.routes, args.others, args.threads))


def figures(table: pd.DataFrame, routes: list[str], others: list[str], threads: int) -> dict[str, Figure]:
    """For each batch a heat map for each route, and the growth of the square sizes."""
    made = {}
    speed = bandwidth()
    for batch in sorted(set(table["batch"])):
        mine = table[table["batch"] == batch]
        for route in routes if "dense" in others else []:
            title = f"{route} over nn.Linear, batch {batch}, {threads} threads"
            mine_by_size = mine[mine["variant"] == route].sort_values("q")
            made[f"speedup-{route}-{batch}"] = plots.heat_map(mine_by_size, title)
        square = mine[mine["layer"] == mine["q"].astype(str) + "x" + mine["q"].astype(str)]
        if square["q"].nunique() > 1:
            last = square["density"] == square["density"].iloc[-1]
            lines = square[square["variant"].isin(routes) | last]
            names = lines["variant"].where(
                ~lines["variant"].isin(routes), lines["variant"] + [f" {100 * p:g} %" for p in lines["density"]]
            )
            floor = [(q, FLOOR * batch * q / speed) for q in sorted(set(square["q"]))]
            title = f"cost of a q x q layer, batch {batch}, {threads} threads"
            made[f"growth-{batch}"] = plots.growth(lines.assign(line=names), floor, title)
    return made


if __name__ == "__main__":
    main()
